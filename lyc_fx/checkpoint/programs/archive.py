"""`.pt2`: the zip archive of `torch.export.save`.

Format: `<root>/data/weights/weight_3` are the bytes of a storage, and `…/model_weights_config.json` says which tensor
of the state dict is what view of which storage: dtype, sizes, strides and offset. Texts are `<root>/extra/<name>`.
Entries are not compressed; the CRC-32 of each is behind its bytes, and in the directory at the end of the archive.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch

from lyc_fx.checkpoint.programs.program import TEXTS, Held, Program
from lyc_fx.errors import BadFile, Unsupported
from lyc_fx.storage.container import start_of

_CONFIG = "_weights_config.json"
_OLD = "serialized_state_dict.pt"
_MODEL = re.compile(r"/models/[^/]+\.json$")
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 10: torch.complex64, 12: torch.bool, 13: torch.bfloat16, 28: torch.uint16,
    29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 31: torch.float8_e4m3fnuz, 32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
"""What `torch.export` calls a dtype (its `ScalarType`)"""


def read_archive(path: Path) -> Program:
    """Find the weights. Raises BadFile for what is no whole archive, and Unsupported for code that was compiled."""
    start_of(path, 1)
    try:
        with ZipFile(path) as archive, path.open("rb") as file:
            entries = {each.filename: each for each in archive.infolist()}
            _refuse_compiled(path, entries)
            configs = [name for name in entries if name.endswith(_CONFIG)]
            if any(name.endswith(_OLD) for name in entries):
                raise Unsupported(
                    f"{path}: was saved by an old torch, which stored its weights as a pickle: save it again, "
                    f"torch.export.save(torch.export.load({str(path)!r}), …)"
                )
            if len(configs) > 1:
                raise Unsupported(f"{path}: holds {len(configs)} programs, and lyc-fx folds into one")
            if not configs:
                raise ValueError("it has no list of weights")  # what is found in a part may be an archive within it
            folder = configs[0].rpartition("/")[0]
            weights = json.loads(archive.read(configs[0]))["config"]
            found = {name: _held(path, file, name, meta, entries, folder) for name, meta in weights.items()}
            texts = {
                text: archive.read(name).decode()
                for text in TEXTS
                for name in entries
                if name.endswith(f"/extra/{text}")
            }
            models = [json.loads(archive.read(name)) for name in entries if _MODEL.search(name)]
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: is no program of torch.export, or is cut off: {error}") from error
    held = {name: each for name, each in found.items() if isinstance(each, Held)}
    odd = {name: each for name, each in found.items() if isinstance(each, str)}
    return Program(path, (path,), held, odd, texts, frozenset(name for model in models for name in _turned(model)))


def _refuse_compiled(path: Path, names: Mapping[str, Any]) -> None:
    if path.name.endswith(".aoti.pt2") or any("/data/aotinductor/" in name for name in names):
        raise Unsupported(
            f"{path}: is compiled: its weights are within machine code. Export the program with slots (lyc_fx.slots) "
            f"and give it adapters as it runs, lyc_fx.bind({path.name!r}).set(…), or fold into the .pt2, .onnx or "
            "checkpoint that it was made of, and compile that"
        )


def _held(path: Path, file: Any, name: str, said: Any, entries: Mapping[str, ZipInfo], folder: str) -> Held | str:
    """Where a tensor is, or why it cannot be changed there."""
    if said["use_pickle"]:
        return "is stored as a pickle, for it is of a class of its own"
    meta, stored = said["tensor_meta"], entries[f"{folder}/{said['path_name']}"]
    sizes, strides = (tuple(each["as_int"] for each in meta[key]) for key in ("sizes", "strides"))
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None:
        return "has a dtype that lyc-fx does not know"
    if stored.compress_type != zipfile.ZIP_STORED:
        return "is compressed, for the archive was packed anew: save the program again with torch.export.save"
    first = meta["storage_offset"]["as_int"] * dtype.itemsize
    found = Held.of(path, name, dtype, sizes, strides, start_in(file, stored) + first)
    if found is None:
        return "is a view with gaps"
    if first + found.stored.bytes > stored.file_size:
        raise ValueError(f"{name} is longer than its entry {stored.filename}")
    return found


def start_in(file: Any, entry: ZipInfo) -> int:
    """The first byte of an entry's content: behind 30 bytes, the name and what else its own header has."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no entry at byte {entry.header_offset}")
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _turned(model: Any) -> Iterator[str]:
    """The weights of transposed convolutions, from what a program is stored as."""
    graph = model["graph_module"]
    found = [spec["parameter"] for spec in graph["signature"]["input_specs"] if "parameter" in spec]
    names = {each["arg"]["name"]: each["parameter_name"] for each in found}
    for node in graph["graph"]["nodes"]:
        if ".conv_transpose" in node["target"]:
            for given in node["inputs"]:
                argument = given["arg"].get("as_tensor", {}).get("name")
                if given["name"] == "weight" and argument in names:
                    yield names[argument]
