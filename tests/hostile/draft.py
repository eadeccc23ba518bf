"""An adapter's files before they are written, with every part open to be spoilt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.storage.files import STORED

CODES = {dtype: code for code, dtype in STORED.items()}


@final
@dataclass(frozen=True)
class Raw:
    """A piece of JSON, valid or not, that is written as it stands."""

    text: str


@final
@dataclass(frozen=True)
class Draft:
    """A safetensors file, and the configuration beside it.

    The header is a list, so that a key may stand in it twice.
    """

    header: tuple[tuple[str, Any], ...]
    data: bytes
    config: dict[str, Any] | bytes | None = None
    content: bytes | None = None
    """All bytes of the file, where they do not follow from the other parts"""
    length: int | None = None
    """What the file says of its header's length, where that is not true"""

    def names(self) -> list[int]:
        """The positions of tensors in the header."""
        return [i for i, (key, _) in enumerate(self.header) if key != "__metadata__"]

    def bytes(self) -> bytes:
        """The safetensors file."""
        if self.content is not None:
            return self.content
        parts = [f"{encoded(key)}:{encoded(value)}" for key, value in self.header]
        text = ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % 8)
        length = len(text) if self.length is None else self.length
        return (length % 2**64).to_bytes(8, "little") + text + self.data

    def written(self, folder: Path) -> Path:
        """What to load: the file, or the folder where there is a configuration."""
        folder.mkdir()
        file = folder / "adapter_model.safetensors"
        file.write_bytes(self.bytes())
        if self.config is None:
            return file
        config = self.config if isinstance(self.config, bytes) else encoded(self.config).encode()
        (folder / "adapter_config.json").write_bytes(config)
        return folder


def encoded(value: Any) -> str:
    """JSON of a value in which pieces may be `Raw`."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{encoded(k)}:{encoded(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encoded, value)) + "]"
    return json.dumps(value)


def drafted(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, config: dict[str, Any] | None = None
) -> Draft:
    """The draft of a valid file."""
    header: list[tuple[str, Any]] = [("__metadata__", metadata)] if metadata else []
    data = b""
    for key, tensor in tensors.items():
        own = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(own)]
        header.append((key, {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}))
        data += own
    return Draft(tuple(header), data, config)
