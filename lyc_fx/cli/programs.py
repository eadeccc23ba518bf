"""Programs on the disk, as the commands take them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def read_program(path: Path) -> "ExportedProgram":
    """Read what `torch.export.save` or lyc-fx wrote. Raises BadFile for anything else."""
    import torch

    from lyc_fx.errors import BadFile

    if not path.is_file():
        raise BadFile(f"{path}: there is no such file")
    try:
        return torch.export.load(path)
    except Exception as error:  # of any kind, from torch's reader of a foreign file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadFile(f"{path} is no .pt2 program that torch.export.load reads: {reason}") from error


def refuse_existing(out: Path, inputs: list[Path], *, force: bool) -> None:
    """Raise BadFile where an output exists, unless it may be replaced, and where it is an input."""
    from lyc_fx.errors import BadFile

    if any(out.resolve() == each.resolve() for each in inputs):
        raise BadFile(f"{out}: is an input; name another output")
    if out.exists() and not force:
        raise BadFile(f"{out}: exists; --force replaces it")
