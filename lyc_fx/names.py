"""From the names in an adapter file to the names of a model's parameters.

Names are generated forward, from the model, and looked up: `_` is both a separator and part of names, so that
decoding `down_blocks_0` is a guess. Where two parameters generate one name, the name is refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import final

from lyc_fx.ldm import LdmNames

PREFIXES = ("lycoris", "lora_unet", "lora_te", "lora_te1", "lora_te2", "lora_te3")
"""What LyCORIS and kohya put before a module's flattened path, with an underscore."""

COMPONENTS = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "text_encoder.",
    "text_encoder_2.", "text_encoder_3.", "prior.",
)  # fmt: skip
"""What may stand before a module's dotted path in place of, or besides, a pipeline's own name for the model."""


_MOST_COMPARED = 20_000_000
"""Letters of a name times letters of all names: a hint must not take minutes"""


def flatten(path: str) -> str:
    """`encoder.layer.0.query` → `encoder_layer_0_query`."""
    return path.replace(".", "_")


def module_of(parameter: str, leaf: str) -> str | None:
    """`fc.weight` → `fc` for leaf `weight`; None where the parameter is no such leaf."""
    if parameter == leaf:
        return ""
    return parameter.removesuffix(f".{leaf}") if parameter.endswith(f".{leaf}") else None


@final
class Names:
    """All the names by which an adapter file may mean one of these parameters.

    A module's path stands for its weight (or bias); a parameter of another name stands for itself. `aliases`
    maps further names of a parameter (its module is registered twice) to the one by which it is known.
    """

    def __init__(self, parameters: Iterable[str], aliases: Mapping[str, str] = MappingProxyType({})) -> None:
        self._known = {name: name for name in parameters}
        self._known |= {alias: name for alias, name in aliases.items() if name in self._known}
        self._flat: dict[tuple[str, str], list[str]] = defaultdict(list)
        original = LdmNames.of(self._known)
        for parameter in sorted(self._known):
            for leaf, path in _names(parameter, original):
                self._flat[leaf, flatten(path)].append(parameter)

    def find(self, module: str, leaf: str) -> list[str]:
        """The parameters that the file may mean: one where all is well, none, or several that collide."""
        if "." in module:
            paths = [module, *(module.removeprefix(c) for c in COMPONENTS if module.startswith(c))]
            for path in paths:
                for name in (f"{path}.{leaf}", path, f"{path}.in_proj_{leaf}"):
                    if name in self._known:
                        return [self._known[name]]
        found = {self._known[p] for text in _unprefixed(module) for p in self._flat.get((leaf, flatten(text)), ())}
        return sorted(found)

    def nearest(self, module: str, leaf: str, count: int = 3) -> list[str]:
        """The parameters whose names are most like a name that was not found."""
        known = {path: parameters[0] for (kind, path), parameters in self._flat.items() if kind == leaf}
        text = flatten(_unprefixed(module)[-1])
        if len(text) * sum(map(len, known)) > _MOST_COMPARED:
            return []
        return [known[path] for path in get_close_matches(text, known, n=count, cutoff=0.6)]


def _names(parameter: str, original: LdmNames | None) -> Iterator[tuple[str, str]]:
    """The leaf and the paths by which a file may mean a parameter."""
    plain = True
    for leaf in ("weight", "bias"):
        path = module_of(parameter, leaf)
        if path is not None:
            plain = False
            yield leaf, path
            if original is not None and (other := original.path(path)) is not None:
                yield leaf, other
        attention = module_of(parameter, f"in_proj_{leaf}")
        if attention is not None:  # PEFT names the input projection of attention by the module alone
            yield leaf, attention
    if plain:
        yield "weight", parameter


def _unprefixed(module: str) -> list[str]:
    return [module] + [module[len(p) + 1 :] for p in PREFIXES if module.startswith(f"{p}_")]
