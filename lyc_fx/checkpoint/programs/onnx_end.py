"""Writing what differs in a folded `.onnx` besides its weights: texts, and the names of other files."""

import mmap
from collections.abc import Mapping
from pathlib import Path

from lyc_fx.checkpoint.programs.onnx import TEXT, pair_at
from lyc_fx.checkpoint.programs.program import TEXTS, Program
from lyc_fx.checkpoint.programs.protobuf import entry, fields
from lyc_fx.errors import Unsupported


def kept_of(program: Program) -> list[tuple[int, int]]:
    """The ranges of the file without the texts that are written anew."""
    with program.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, first = [], 0
        for each in fields(data, 0, len(data)):
            if each.number == TEXT and pair_at(data, each)[0] in TEXTS:
                found.append((first, each.head))
                first = each.stop
        return [*found, (first, len(data))]


def finish_onnx(part: Path, texts: Mapping[str, str]) -> None:
    """Write the texts at the end of a copy that lacks them."""
    with part.open("ab") as file:
        for name, text in texts.items():
            file.write(entry(TEXT, entry(1, name.encode()) + entry(2, text.encode())))


def rename_data(part: Path, names: Mapping[str, str], path: Path) -> None:
    """Name other files as those of the weights. Raises Unsupported, which names `path`, without the package onnx."""
    try:
        import onnx
    except ImportError as error:
        raise Unsupported(f'{path}: needs the package onnx: pip install "lyc-fx[onnx]"') from error
    model = onnx.load(str(part), load_external_data=False)
    for tensor in model.graph.initializer:
        for said in tensor.external_data:
            if said.key == "location":
                said.value = names[said.value]
    part.write_bytes(model.SerializeToString(deterministic=True))
