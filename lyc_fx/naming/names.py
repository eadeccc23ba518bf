"""Looking up the names of an adapter file among all the names that a model's parameters may have.

All names are generated from the model's parameters, instead of decoding those of the file: `_` is both a separator and
part of names, so that decoding `down_blocks_0` would be a guess. A name that two parameters generate is ambiguous.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Protocol, final, runtime_checkable

from lyc_fx.extensions import Table
from lyc_fx.naming.clip import Clip
from lyc_fx.naming.components import (
    DENOISERS,
    PREFIXES,
    Role,
    component_of,
    components_of,
    find_denoisers,
    may_mean,
    readings_of,
)
from lyc_fx.naming.flux import FLUX
from lyc_fx.naming.fused import FUSED
from lyc_fx.naming.piece import Pieces, Shapes, whole
from lyc_fx.naming.scheme import Dialect
from lyc_fx.naming.sd3 import SD3
from lyc_fx.naming.unet import UNet
from lyc_fx.naming.wan import WAN
from lyc_fx.naming.wrappers import plain_names, unwrapped

_LEAVES = ("weight", "bias")
_MOST_COMPARED = 20_000_000
"""The limit for `nearest` on characters of a name times characters of all names, beyond which it would take minutes"""


@runtime_checkable
class NamesOf(Protocol):
    """A naming scheme of an architecture."""

    @property
    def kind(self) -> str:
        """diffusers' name for a component of this architecture: `unet`, `transformer`, `text_encoder`; may be empty."""
        ...

    def aliases(self, shapes: Shapes) -> Iterator[tuple[Dialect, str, Pieces]]:
        """Yield further names of parameters, `<module>.weight` or `<module>.bias`, with what they mean."""
        ...


SCHEMES: tuple[NamesOf, ...] = (UNet(), FLUX, SD3, WAN, Clip(), FUSED)
"""Our schemes of all architectures whose modules have several names"""
TABLE: Table[NamesOf] = Table("lyc_fx.architectures", NamesOf, SCHEMES, lambda scheme, others: None, values=True)


def schemes() -> tuple[NamesOf, ...]:
    """`SCHEMES`, and those from outside (`lyc_fx.register`)."""
    return TABLE.all()


@final
@dataclass(frozen=True)
class Name:
    """One name by which a file may mean parameters."""

    path: str
    """The path of the module, without the component's prefix if `roles` are known"""
    leaf: str
    """`weight` or `bias`"""
    pieces: Pieces
    """What the name means"""
    dialect: Dialect = Dialect.own
    roles: frozenset[Role] = frozenset()
    """The roles of the component that it belongs to; empty if unknown"""
    kind: str = ""
    """diffusers' name for such a component, if the architecture is known"""

    @property
    def precedence(self) -> int:
        """Of several meanings of a text, those of the lowest precedence count: 0 for whole names of the model."""
        if self.dialect is Dialect.spelling:
            return 2
        return 0 if self.dialect is Dialect.own and not self.roles else 1


def flatten(path: str) -> str:
    """Replace dots by underscores: `encoder.layer.0.query` → `encoder_layer_0_query`."""
    return path.replace(".", "_")


@final
class Names:
    """All names that an adapter file may use for the parameters of a model.

    A module's path means its weight or bias; any other parameter is meant by its own name. `aliases` maps further names
    of a parameter, such as one whose module is registered twice, to its name in `shapes`.
    """

    def __init__(self, shapes: Shapes, aliases: Mapping[str, str] = MappingProxyType({})) -> None:
        self._known = {name: name for name in shapes}
        self._known |= {alias: name for alias, name in aliases.items() if name in self._known}
        self._known |= {plain: self._known[name] for plain, name in plain_names(self._known).items()}
        self.denoisers = find_denoisers(shapes)
        every = {name: tuple(shapes[own]) for name, own in self._known.items()}
        self.all = tuple(_all_names(every))
        self._flat: dict[tuple[str, str], list[Name]] = defaultdict(list)
        for name in self.all:
            self._flat[name.leaf, flatten(name.path)].append(name)

    def find(self, module: str, leaf: str, component: str | None = None) -> list[Pieces]:
        """Return all meanings of a file's name for a module: none if it is unknown, several if it is ambiguous.

        `component` is the denoiser, one of `denoisers`, that names of all denoisers are taken to mean.
        """
        chosen = None if component is None else self.denoisers[component]
        readings = readings_of(module)
        plain = [*readings_of(unwrapped(module)), *((roles, unwrapped(name)) for roles, name in readings)]
        found = self._read(readings, "." in module, leaf, component, chosen)
        return found or self._read(plain, "." in module, leaf, component, chosen)

    def _read(
        self,
        readings: Sequence[tuple[frozenset[Role], str]],
        dotted: bool,
        leaf: str,
        component: str | None,
        chosen: Role | None,
    ) -> list[Pieces]:
        """Return the meanings of these readings of a name."""
        if dotted:
            for _, path in readings:
                for name in (f"{path}.{leaf}", path, f"{path}.in_proj_{leaf}"):
                    if name in self._known and (chosen is None or self._is_of(component, self._known[name])):
                        return [whole(self._known[name])]
        found = [
            name
            for roles, path in readings
            for name in self._flat.get((leaf, flatten(path)), ())
            if may_mean(roles, name.roles, chosen)
            and (chosen is None or all(self._is_of(component, piece.parameter) for piece in name.pieces))
        ]
        best = min((name.precedence for name in found), default=0)
        return sorted({self._resolved(name.pieces) for name in found if name.precedence == best}, key=repr)

    def _is_of(self, component: str | None, parameter: str) -> bool:
        """Return whether a parameter belongs to this denoiser, or to none."""
        owner, roles = component_of(parameter)
        return not roles & DENOISERS or owner == f"{component}."

    def _resolved(self, pieces: Pieces) -> Pieces:
        return tuple(replace(piece, parameter=self._known[piece.parameter]) for piece in pieces)

    def nearest(self, module: str, leaf: str, count: int = 3) -> list[str]:
        """Return the parameters whose names are most similar to a name that was not found."""
        known = {path: names[0] for (kind, path), names in self._flat.items() if kind == leaf}
        text = flatten(readings_of(module)[-1][1])
        if len(text) * sum(map(len, known)) > _MOST_COMPARED:
            return []
        close = get_close_matches(text, known, n=count, cutoff=0.6)
        return list(dict.fromkeys(piece.parameter for path in close for piece in known[path].pieces))[:count]


def _all_names(shapes: Shapes) -> Iterator[Name]:
    """Yield all names of every parameter: its own, with and without its component's prefix, and its architecture's."""
    components: dict[tuple[str, frozenset[Role]], dict[str, str]] = defaultdict(dict)
    for parameter in sorted(shapes):
        yield from _leaves(Name(parameter, "", whole(parameter)))
        levels = list(components_of(parameter))
        for before, roles in levels:
            yield from _leaves(Name(parameter.removeprefix(before), "", whole(parameter), roles=roles))
        prefix, roles = levels[-1] if levels else ("", frozenset[Role]())
        components[prefix, roles][parameter.removeprefix(prefix)] = parameter
    for (_, roles), inner in components.items():
        attention = {module_form(name): own for name, own in inner.items()}
        own_shapes = {name: shapes[own] for name, own in attention.items()}
        for scheme in schemes():
            for dialect, name, pieces in scheme.aliases(own_shapes):
                real = tuple(replace(piece, parameter=attention[piece.parameter]) for piece in pieces)
                yield from _leaves(Name(name, "", real, dialect, roles, scheme.kind))


def module_form(parameter: str) -> str:
    """Rename parameters of `nn.MultiheadAttention` as if of a module: `attn.in_proj_weight` → `attn.in_proj.weight`."""
    for leaf in _LEAVES:
        if parameter.endswith(f".in_proj_{leaf}"):
            return f"{parameter.removesuffix(f'_{leaf}')}.{leaf}"
    return parameter


def _leaves(name: Name) -> Iterator[Name]:
    """Split the parameter name in `name.path` into path and leaf, in all ways that a file may use."""
    plain = True
    for leaf in _LEAVES:
        path = module_of(name.path, leaf)
        if path is not None:
            plain = False
            yield replace(name, path=path, leaf=leaf)
        attention = module_of(name.path, f"in_proj_{leaf}")
        if attention is not None:  # PEFT names the input projection of attention by the module alone
            yield replace(name, path=attention, leaf=leaf)
            yield replace(name, path=f"{attention}.in_proj", leaf=leaf)
    if plain:
        yield replace(name, leaf="weight")


def module_of(parameter: str, leaf: str) -> str | None:
    """Return the module's path: `fc`, for `fc.weight` and the leaf `weight`. None if the parameter has another leaf."""
    if parameter == leaf:
        return ""
    return parameter.removesuffix(f".{leaf}") if parameter.endswith(f".{leaf}") else None


__all__ = ["PREFIXES", "SCHEMES", "Name", "Names", "flatten"]
