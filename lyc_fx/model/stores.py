"""Stores for the base weights of a live model while adapters are merged into it."""

import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.errors import BadFile, Unsupported
from lyc_fx.storage.container import opened
from lyc_fx.storage.files import path_of


class Store(ABC):
    """Base weights by name, each stored when it is first requested."""

    def __init__(self) -> None:
        self._bases: dict[str, Tensor] = {}

    @abstractmethod
    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor into the memory of this store. Raises BadFile if a disk is full."""

    def load_base(self, name: str, weight: Tensor) -> Tensor:
        """Return the base of a weight that has not been changed yet: here, a copy of it."""
        return self.copy(weight)

    @final
    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Return the base of a weight: its value at the first call with this name, and the same at every later call."""
        if name not in self._bases:
            self._bases[name] = self.load_base(name, weight)
        return self._bases[name]

    @final
    def __contains__(self, name: str) -> bool:
        return name in self._bases

    def close(self) -> None:
        """Release all stored weights."""
        self._bases.clear()


@final
class Memory(Store):
    """Copies in ordinary memory."""

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)


@final
class Pinned(Store):
    """Copies in page-locked memory, which a GPU reads fastest. The constructor raises Unsupported without CUDA."""

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            raise Unsupported('keep="pinned" needs a CUDA device; keep="memory" is for models on the CPU')

    def copy(self, tensor: Tensor) -> Tensor:
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept.copy_(tensor.detach())


@final
class Disk(Store):
    """Copies in memory-mapped temporary files, whose pages the system may drop from memory.

    The files have no names, so none can be left behind: each disappears with its mapping.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._folder = folder

    def copy(self, tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor.detach().to("cpu", copy=True)  # an empty file cannot be mapped
        values = tensor.detach().to("cpu").contiguous()
        try:
            with tempfile.TemporaryFile(prefix=".lyc-fx.", dir=self._folder) as file:
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)
                # Written here instead of through the mapping: a full disk is then an error, not a fatal signal.
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise BadFile(
                f"{self._folder or tempfile.gettempdir()}: {error.strerror}: the base weights cannot be stored here; "
                "the model is unchanged: free some space, or give another keep="
            ) from error
        return torch.frombuffer(mapped, dtype=torch.uint8).view(values.dtype).reshape(values.shape)


@final
class Checkpoint(Store):
    """The safetensors file that the model was loaded from, with the model's own names for its weights.

    The file must not change while it is in use. When a weight is first requested, the file's values are compared with
    the model's, bit by bit. Raises BadFile for a file that is not a safetensors file, and for a weight that is missing
    in it or differs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = Path(path)
        self._resources = ExitStack()
        self._handle: Any = self._resources.enter_context(opened(path))
        self._names = frozenset(self._handle.keys())

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)

    def load_base(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._names:
            raise BadFile(f"{self._path}: has no {name}: is it the file that this model was loaded from?")
        stored: Tensor = self._handle.get_tensor(name)
        if (stored.shape, stored.dtype) != (weight.shape, weight.dtype):
            raise BadFile(
                f"{self._path}: {name} is {tuple(stored.shape)} {stored.dtype}, "
                f"in the model {tuple(weight.shape)} {weight.dtype}"
            )
        if not torch.equal(_bits(stored), _bits(weight.detach().to("cpu"))):
            raise BadFile(
                f"{self._path}: {name} has other values than in the model, so this file cannot restore the model: give "
                "the file that it was loaded from, or another keep="
            )
        return stored

    def close(self) -> None:
        super().close()
        self._resources.close()


def _bits(tensor: Tensor) -> Tensor:
    """View the bytes of a tensor, so that NaN equals itself, and 0 differs from -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def make_store(keep: str | os.PathLike[str]) -> Store:
    """Make the store for `keep`: "memory", "pinned", "disk", a folder for temporary files, or a safetensors file.

    Raises BadFile if there is no such file or folder, and Unsupported for "pinned" without CUDA.
    """
    if keep in ("memory", "pinned", "disk"):
        return {"memory": Memory, "pinned": Pinned, "disk": Disk}[str(keep)]()
    path = path_of(keep, "keep")
    if not path.exists():
        raise BadFile(
            f'{path}: does not exist; keep must be "memory", "pinned", "disk", a folder or a safetensors file'
        )
    return Disk(path) if path.is_dir() else Checkpoint(path)
