"""Errors on the command line: one message, exit code 1, no traceback."""

import os
import sys
from types import FrameType

import typer
from typer.core import TyperGroup

from lyc_fx.cli.warned import collected_warnings
from lyc_fx.errors import LycFxError

_INTERRUPTED: list[int] = []
"""The signals that were received"""


def interrupt(number: int, _: FrameType | None) -> None:
    """Handle a signal by raising KeyboardInterrupt.

    The signal is recorded too, since C code may turn the KeyboardInterrupt into another error.
    """
    _INTERRUPTED.append(number)
    raise KeyboardInterrupt


def leave(code: object) -> None:
    """Exit the process with this code. After success exit at once, which saves torch's shutdown of 0.25 seconds.

    After an error, exit in the usual way, since frames may be left that clean up when Python destroys them.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if "torch" in sys.modules and not code:
            os._exit(0)
    except OSError:  # a closed pipe, which Python reports itself when it exits
        pass
    sys.exit(code)  # type: ignore[arg-type]


class ReportsErrors(TyperGroup):
    """A group of commands that prints expected errors as `error: …` on stderr. A bug still shows its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer.Context is click's Context
        """Run a command. Raises typer.Exit(1) after printing an expected error."""
        try:
            with collected_warnings():
                return super().invoke(ctx)
        except BrokenPipeError as error:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout when it exits
            raise typer.Exit(0) from error
        except (Exception, KeyboardInterrupt) as error:
            text = "interrupted" if _INTERRUPTED else _message(error)
            if text is None:
                raise
            typer.echo(f"error: {text}", err=True)
            raise typer.Exit(1) from error


def _message(error: BaseException) -> str | None:
    """Return the message for the user, or None for an error that is a bug."""
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
