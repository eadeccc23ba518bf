"""A package of AOTInductor: its call, and its constants, which can be replaced while it is loaded."""

import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.errors import BadFile, Unsupported


@final
class Package:
    """Of one file. It keeps the tensors that it was given, since the code reads their memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._stamp = path, _stamp(path)
        self._loaded: Any = torch._inductor.aoti_load_package(str(path))
        self._kept: dict[str, Tensor] = {}
        self._coming: list[Mapping[str, Tensor]] = []

    def __call__(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Run it. Its own call takes dicts by their order, so that the tensors are given flat."""
        given = [value.contiguous() for value in inputs.values() if isinstance(value, Tensor)]
        with torch.no_grad():
            return list(self._loaded.loader.boxed_run(given))

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The constants that are in the file, by their names in the program; nobody may write to them.

        The loader does not show them. So its library is loaded once more, of which the constants are the file's pages.
        Raises Unsupported for a package for another device than the CPU, and BadFile if the file is another one by now.
        """
        if (device := self._loaded.get_metadata().get("AOTI_DEVICE_KEY", "cpu")) != "cpu":
            raise Unsupported(f"{self._path}: its weights can be replaced on the CPU alone, and it is for {device}")
        if _stamp(self._path) != self._stamp:
            raise BadFile(f"{self._path}: has changed since it was loaded: call lyc_fx.bind again")
        with TemporaryDirectory() as folder, zipfile.ZipFile(self._path) as archive:
            [library] = [name for name in archive.namelist() if name.endswith(".so")]
            self._reader = torch._C._aoti.AOTIModelContainerRunnerCpu(archive.extract(library, folder), 1)
            found: dict[str, Tensor] = self._reader.extract_constants_map(False)
        return found

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the code read these constants: contiguous, of the dtypes and shapes of `own`, and never written again.

        The runtime checks none of that.
        """
        for name, tensor in tensors.items():
            like = self.own[name]
            assert (tensor.dtype, tensor.shape) == (like.dtype, like.shape) and tensor.is_contiguous(), name
        self._coming.append(tensors)  # an interrupt must not free what the code reads already
        self._loaded.load_constants(dict(tensors), check_full_update=False, user_managed=True)
        self._kept |= tensors
        self._coming.clear()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What another file under the same name has another of; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
