"""Inductor as a backend whose caches are kept in a file."""

import copyreg
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch.fx import GraphModule

from lyc_fx.caching.cache_file import CacheFile, CacheNotUsed, kept
from lyc_fx.errors import BadFile

_FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Where inductor and triton look for what they have compiled, and write it"""


@final
class CachedInductor:
    """Compiles with inductor, and keeps what it has compiled in a file; what the file has is not compiled again.

    The caches are inductor's own: of graphs, of their derivatives, and of kernels with their machine code, which
    `torch.compiler.save_cache_artifacts` leaves out for processors. Keys are those of inductor too, so that the file
    serves every model with the same graphs, whatever the values of its parameters and adapters.
    """

    def __init__(self, path: object, options: Mapping[str, Any]) -> None:
        """Read the file if there is one. Raises BadFile as `CacheFile.at`."""
        self._file, self._options = CacheFile.at(path), dict(options)
        self._folder = Path(tempfile.mkdtemp(prefix="lyc-fx-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._file.unpack(self._folder)
        self._kept = set(kept(self._folder))

    def __call__(self, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a graph, or find it compiled, as a backend of `torch.compile`."""
        from torch._dynamo import lookup_backend

        with caches_in(self._folder):
            compiled = lookup_backend("inductor")(gm, list(inputs), config_patches=self._options)  # type: ignore[call-arg]
        self._keep()
        return compiled

    def _keep(self) -> None:
        """Write the file anew if there is more to keep, with what others have written there since."""
        if self._kept.issuperset(kept(self._folder)):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CacheNotUsed)  # it was said when it was read
                self._file.unpack(self._folder)
            self._file.pack(self._folder)
        except (BadFile, OSError) as error:
            warnings.warn(f"compiled code is not kept: {error}", CacheNotUsed, stacklevel=2)
        self._kept = set(kept(self._folder))


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Let inductor use a folder for its caches. One graph is compiled at a time, whatever the number of threads."""
    before = {name: os.environ.get(name) for name in _FOLDERS}
    reducer = copyreg.dispatch_table.get(torch.memory_format)
    copyreg.pickle(torch.memory_format, _reduced)  # type: ignore[arg-type]
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    try:
        yield
    finally:
        del copyreg.dispatch_table[torch.memory_format]
        if reducer is not None:
            copyreg.dispatch_table[torch.memory_format] = reducer
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _reduced(layout: torch.memory_format) -> tuple[Callable[[str], torch.memory_format], tuple[str]]:
    """Pickle a memory format by its name in torch.

    By itself it is pickled as an attribute of the module that was first to import torch, whichever that was. Inductor's
    keys are made of pickles, and would differ between programs that have the same model.
    """
    return _memory_format, (str(layout).removeprefix("torch."),)


def _memory_format(name: str) -> torch.memory_format:
    return getattr(torch, name)
