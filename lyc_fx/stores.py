"""Where a live model's base weights are kept while adapters are on: the user's choice of memory."""

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
from lyc_fx.files import path_of
from lyc_fx.formats.container import opened


class Store(ABC):
    """Base weights by name, each kept from when it is first asked for."""

    def __init__(self) -> None:
        self._bases: dict[str, Tensor] = {}

    @abstractmethod
    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor's values, apart from it. Raises BadFile where a disk is full."""

    def first(self, name: str, weight: Tensor) -> Tensor:
        """The base of a weight that nothing has changed yet."""
        return self.copy(weight)

    @final
    def keep(self, name: str, weight: Tensor) -> Tensor:
        """The base of a weight: as it is now when this is first called for it, and from then on the same."""
        if name not in self._bases:
            self._bases[name] = self.first(name, weight)
        return self._bases[name]

    @final
    def __contains__(self, name: str) -> bool:
        return name in self._bases

    def close(self) -> None:
        """Give up what is kept."""
        self._bases.clear()


@final
class Memory(Store):
    """Copies in ordinary memory."""

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)


@final
class Pinned(Store):
    """Copies in page-locked memory, from which a GPU reads fastest. Raises Unsupported without CUDA."""

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            raise Unsupported('keep="pinned" needs a CUDA device; keep="memory" is for models on the CPU')

    def copy(self, tensor: Tensor) -> Tensor:
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept.copy_(tensor.detach())


@final
class Disk(Store):
    """Copies in files that are mapped into memory: the system may drop their pages. No file has a name that could
    be left behind: it is gone when its mapping is."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._folder = folder

    def copy(self, tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor.detach().to("cpu", copy=True)  # nothing cannot be mapped
        values = tensor.detach().to("cpu").contiguous()
        try:
            with tempfile.TemporaryFile(prefix=".lyc-fx.", dir=self._folder) as file:
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)
                file.flush()  # written, not mapped for writing: a full disk is an error here, not a signal
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise BadFile(f"{self._folder or tempfile.gettempdir()}: {error.strerror}; the weights are kept") from error
        return torch.frombuffer(mapped, dtype=torch.uint8).view(values.dtype).reshape(values.shape)


@final
class Checkpoint(Store):
    """The safetensors file that the model was loaded from, under the model's own names; it must not be changed
    meanwhile. A weight's first base is compared with the model's, to the bit.

    Raises BadFile for what is no such file, and for a weight that it holds otherwise or not at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = Path(path)
        self._resources = ExitStack()
        self._handle: Any = self._resources.enter_context(opened(path))
        self._names = frozenset(self._handle.keys())

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)

    def first(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._names:
            raise BadFile(f"{self._path}: holds no {name}: is it the file that this model was loaded from?")
        stored: Tensor = self._handle.get_tensor(name)
        if (stored.shape, stored.dtype) != (weight.shape, weight.dtype):
            raise BadFile(
                f"{self._path}: {name} is {tuple(stored.shape)} {stored.dtype}, "
                f"in the model {tuple(weight.shape)} {weight.dtype}"
            )
        if not torch.equal(_bits(stored), _bits(weight.detach().to("cpu"))):
            raise BadFile(f"{self._path}: {name} has other values in the model: they could not be restored from here")
        return stored

    def close(self) -> None:
        super().close()
        self._resources.close()


def _bits(tensor: Tensor) -> Tensor:
    """NaN is equal to itself here, and 0 not to -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def store_for(keep: str | os.PathLike[str]) -> Store:
    """`"memory"`, `"pinned"`, `"disk"`, a folder for temporary files, or a safetensors file.

    Raises BadFile where there is no such file or folder.
    """
    if keep in ("memory", "pinned", "disk"):
        return {"memory": Memory, "pinned": Pinned, "disk": Disk}[str(keep)]()
    path = path_of(keep, "keep")
    if not path.exists():
        raise BadFile(f'{path}: keep is "memory", "pinned", "disk", a folder or a safetensors file; there is none here')
    return Disk(path) if path.is_dir() else Checkpoint(path)
