"""What the command line says when something goes wrong: one message, exit code 1, no traceback."""

import os
import sys
from types import FrameType

import typer
from typer.core import TyperGroup

from lyc_fx.cli.warned import said_once
from lyc_fx.errors import LycFxError

_INTERRUPTED: list[int] = []
"""The signals that have come"""


def interrupt(number: int, _: FrameType | None) -> None:
    """A signal handler. It remembers the signal, since C code may make another error of the KeyboardInterrupt."""
    _INTERRUPTED.append(number)
    raise KeyboardInterrupt


def leave(code: object) -> None:
    """End the process, if all is well at once: that torch takes itself apart first costs a quarter of a second.

    After an error, frames may be left that clean up when Python's own end destroys them.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if "torch" in sys.modules and not code:
            os._exit(0)
    except OSError:  # a closed pipe, of which Python says so at its own end
        pass
    sys.exit(code)  # type: ignore[arg-type]


class ReportsErrors(TyperGroup):
    """A group of commands whose expected errors end as `error: …` on stderr. A bug keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # click's Context, which it is
        try:
            with said_once():
                return super().invoke(ctx)
        except BrokenPipeError as error:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
            raise typer.Exit(0) from error
        except (Exception, KeyboardInterrupt) as error:
            text = "interrupted" if _INTERRUPTED else _said(error)
            if text is None:
                raise
            typer.echo(f"error: {text}", err=True)
            raise typer.Exit(1) from error


def _said(error: BaseException) -> str | None:
    """The message for the user; None for what is not his to mend."""
    match error:
        case KeyboardInterrupt():
            return "interrupted"
        case MemoryError():
            return "there is not enough memory"
        case OSError():
            reason = error.strerror or str(error)
            return f"{error.filename}: {reason}" if error.filename else reason
        case LycFxError():
            return str(error)
    # torch has no class of its own for this on the CPU.
    return "there is not enough memory" if "allocate memory" in str(error) else None
