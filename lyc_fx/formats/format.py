"""What a file format is: a way to name modules and factors, and rules for what the names leave open."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, final, get_args

from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.texts import configuration

Layout = Literal["torch", "nhwc"]
"""How factors under LyCORIS's keys lie: as LyCORIS has them, or as `formats.nhwc` says"""
MARK = "lyc_fx.layout"
"""The key of a file's metadata that says its layout"""
_METADATA = "lora_adapter_metadata"


@final
@dataclass(frozen=True)
class Source:
    """What a file says besides its tensors."""

    name: str
    keys: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the safetensors header"""
    config: Mapping[str, Any] | None = None
    """PEFT's `adapter_config.json`"""
    layout: Layout | None = None
    """What the caller says of it"""
    alpha: float | None = None
    """What the caller says of modules without one of their own"""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of all tensors, by key"""
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Factors that all modules have in common, by suffix"""

    @property
    def stated_layout(self) -> str | None:
        """What the caller says, or else the metadata; None leaves it to the shapes. Raises BadAdapter if unknown."""
        stated = self.layout or self.metadata.get(MARK)
        if stated is not None and stated not in get_args(Layout):
            raise BadAdapter(f"{self.name}: layout {stated!r} is not known: {', '.join(get_args(Layout))}")
        return stated

    def configuration(self, module: str) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
        """What the training's configuration says of a module, and the names that its patterns may have for it.

        That is `lora_adapter_metadata` of diffusers in the header, of the module's component (such as `unet`) or of the
        only one; else an `adapter_config.json` beside the file; None without either.
        """
        component, _, inner = module.partition(".")
        if self._components is None:
            return self.config, (module, inner)
        own = self._components.get(component)
        return (own, (inner,)) if own else (self._components[""], (module, inner))

    @cached_property
    def _components(self) -> Mapping[str, Mapping[str, Any]] | None:
        """That configuration by component, read once, and as a whole under ""."""
        if _METADATA not in self.metadata:
            return None
        whole = configuration(self.metadata[_METADATA], f"{self.name}: {_METADATA}")
        parts: dict[str, dict[str, Any]] = {}
        for key, value in whole.items():
            component, dot, name = key.partition(".")
            if dot and component:
                parts.setdefault(component, {})[name] = value
        return {**parts, "": whole}


@final
@dataclass(frozen=True)
class Contents:
    """What a writer makes of an adapter set: all that `load` needs to read it again."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """For the safetensors header"""
    config: Mapping[str, Any] | None = None
    """PEFT's `adapter_config.json`"""


class Format(ABC):
    """One convention for the keys of an adapter file. A format is a final subclass without state.

    Formats are told apart per key: a file may mix them. All of them come down to LyCORIS's suffixes.
    """

    name: ClassVar[str]
    names: ClassVar[str] = "peft"
    """For a format from outside: whose names of modules `convert` takes for it, as in `naming.Target`"""

    @abstractmethod
    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        """The module (as names are looked up) and the LyCORIS suffix of a key; None where it is not of this format."""

    def shared(self, key: str) -> str | None:
        """The LyCORIS suffix of a key that is of all modules; None where it is of one."""
        return None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        """A module's tensors by suffix, with what the format keeps elsewhere (such as alpha) or lays out otherwise.

        Raises BadAdapter where something that the format needs is not there.
        """
        return dict(group)

    @abstractmethod
    def write(self, adapters: AdapterSet) -> Contents:
        """A file of this convention, under the modules' names as they are, with the set's metadata.

        Raises Unsupported, naming every module whose adapter it cannot express.
        """
