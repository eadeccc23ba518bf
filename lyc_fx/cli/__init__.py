"""The command line. Each command has a file with a function `command`, and only that function imports torch."""

import signal
import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer

import lyc_fx
from lyc_fx.cli import convert, coverage, demo, export, fold, inspect, pack, plan
from lyc_fx.cli.errors import ReportsErrors, interrupt, leave

__all__ = ["app", "main"]

app = typer.Typer(
    cls=ReportsErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain messages: boxes would break paths that one wants to copy
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fold")(fold.command)
app.command("inspect")(inspect.command)
app.command("coverage")(coverage.command)
app.command("convert")(convert.command)
app.command("plan")(plan.command)
app.command("export")(export.command)
app.command("pack")(pack.command)
app.command("demo")(demo.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lyc-fx {lyc_fx.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fold LyCORIS adapters into checkpoints, see what an adapter file holds, convert it, and export programs."""


def main() -> None:
    """Run the command line: the entry point of `lyc-fx`."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # clean up on `kill`, or a closed terminal, as on Ctrl-C
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(number, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name, or a terminal, may not be UTF-8
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # mypy does not accept *args here
    try:
        app(prog_name="lyc-fx")
    except SystemExit as end:
        leave(end.code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
        print(f"warning: {message}", file=sys.stderr)
