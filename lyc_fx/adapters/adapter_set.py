"""`AdapterSet`: what an adapter file holds, before it meets a model."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from types import MappingProxyType
from typing import Self, final

import torch

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.renaming import check_table, rename_all
from lyc_fx.choices import Convention

NamePattern = str | re.Pattern[str]


def _matches(pattern: NamePattern, name: str) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else pattern.fullmatch(name) is not None


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """One adapter of a file, for one parameter of one module."""

    module: str
    """The module as the file names it, such as `lora_unet_mid_block_attentions_0_proj_in`"""
    leaf: str
    """The parameter of that module: `weight` or `bias`"""
    adapter: Adapter
    keys: tuple[str, ...]
    """The file's keys that this entry was read from"""
    shape: tuple[int, ...] | None = None
    """The shape to which the file would pad the weight first (ComfyUI's `reshape_weight`)"""
    unread: tuple[str, ...] = ()
    """Keys of the same module that no format understood: without them this may be another adapter than was trained"""


@final
@dataclass(frozen=True, eq=False)
class AdapterSet:
    """Adapters by the names that their file uses; a model's names are met in `lyc_fx.binding.bind`."""

    entries: tuple[Entry, ...]
    source: str = "<tensors>"
    """The file, as messages name it"""
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unread: tuple[str, ...] = ()
    """Keys that no format understood; strict use refuses them"""
    task: str | None = None
    """What PEFT's configuration says of the model that was trained, such as `SEQ_CLS`"""

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        kinds = Counter(entry.adapter.name for entry in self.entries)
        unread = f", {len(self.unread)} keys unread" if self.unread else ""
        return f"<AdapterSet {self.source}: {', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'empty'}{unread}>"

    def select(self, *patterns: NamePattern) -> Self:
        """The entries whose module (as in the file) matches one of the patterns: fnmatch texts, or compiled
        regular expressions that match the whole name.

        `adapters.select("lora_unet_*")` is the part for the UNet of a file that also holds text encoders.
        """
        return self._keep(lambda name: any(_matches(p, name) for p in patterns))

    def exclude(self, *patterns: NamePattern) -> Self:
        """The entries whose module (as in the file) matches none of the patterns."""
        return self._keep(lambda name: not any(_matches(p, name) for p in patterns), every=True)

    def renamed(self, table: Mapping[str, str]) -> Self:
        """The same adapters under other names: `adapters.renamed({"backbone": "model.layers", "module": ""})`.

        A key is one segment of a module's name, or several in a row, wherever they stand, and becomes its value. In
        names without dots, segments end at underscores. What was renamed is not renamed again; the empty key stands
        before every name. Raises BadAdapter where a key is in no name, or where two names become one; WrongArgument.
        """
        names = rename_all((entry.module for entry in self.entries), check_table(table), self.source)
        return replace(self, entries=tuple(replace(e, module=names[e.module]) for e in self.entries))

    def _keep(self, wanted: Callable[[str], bool], *, every: bool = False) -> Self:
        """The entries that are wanted. The module of a key that no format reads may be any start of it: one of them, or
        `every`, must be wanted.
        """
        enough = all if every else any
        return replace(
            self,
            entries=tuple(e for e in self.entries if wanted(e.module)),
            unread=tuple(
                key for key in self.unread if enough(map(wanted, (key.split(".")[0], key.rpartition(".")[0])))
            ),
        )

    def in_convention(self, convention: Convention) -> Self:
        """The same adapters with another meaning of strengths between 0 and 1."""
        if all(entry.adapter.convention == convention for entry in self.entries):
            return self  # which knows its digest
        changed = [replace(e, adapter=replace(e.adapter, convention=convention)) for e in self.entries]
        return replace(self, entries=tuple(changed))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, alphas and factors: the same for the same adapters, whatever the file."""
        total = hashlib.sha256()
        for entry in sorted(self.entries, key=lambda e: (e.module, e.leaf)):
            adapter = entry.adapter
            numbers = [getattr(adapter, field) for field in adapter.scalars]
            total.update(repr((entry.module, entry.leaf, adapter.name, adapter.alpha, numbers)).encode())
            for name, factor in adapter.factors().items():
                total.update(repr((name, tuple(factor.shape), factor.dtype)).encode())
                flat = factor.detach().to("cpu").contiguous().reshape(-1)
                total.update(flat.view(torch.uint8).numpy().data)
        return total.hexdigest()
