"""What stands before the names of modules: the parts of a pipeline, in checkpoints and in adapter files.

Several text encoders may have the same inner names. A name is for those whose roles are among those of its prefix.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

Role = Literal["denoiser", "denoiser_2", "te1", "te2", "te3", "autoencoder"]

_DENOISER: frozenset[Role] = frozenset({"denoiser"})
_SECOND: frozenset[Role] = frozenset({"denoiser_2"})
_TE1: frozenset[Role] = frozenset({"te1"})
_TE2: frozenset[Role] = frozenset({"te2"})
_TE3: frozenset[Role] = frozenset({"te3"})
_T5 = _TE2 | _TE3
"""The second text encoder of Flux in diffusers and OneTrainer, the third in kohya's numbering"""

COMPONENTS: dict[str, frozenset[Role]] = {
    "model.diffusion_model.": _DENOISER,
    "diffusion_model.": _DENOISER,
    "unet.": _DENOISER,
    "transformer.": _DENOISER,
    "transformer_2.": _SECOND,
    "prior.": _DENOISER,
    "dit.": _DENOISER,
    "dit2.": _SECOND,
    "conditional_transformer.": _DENOISER,
    "cond_stage_model.transformer.": _TE1,
    "cond_stage_model.model.": _TE1,
    "conditioner.embedders.0.transformer.": _TE1,
    "conditioner.embedders.0.model.": _TE1 | _TE2,
    "conditioner.embedders.1.model.": _TE2,
    "text_encoders.clip_l.transformer.": _TE1,
    "text_encoders.clip_l.": _TE1,
    "text_encoders.clip_g.transformer.": _TE2,
    "text_encoders.clip_g.": _TE2,
    "text_encoders.t5xxl.transformer.": _T5,
    "text_encoders.t5xxl.": _T5,
    "text_encoder.": _TE1,
    "text_encoder_2.": _T5,
    "text_encoder_3.": _TE3,
    "first_stage_model.": frozenset({"autoencoder"}),
    "vae.": frozenset({"autoencoder"}),
}
"""Before dotted names, of a checkpoint or of an adapter file"""

WRAPPERS = ("base_model.model.", "pipe.")
"""What PEFT and DiffSynth put before names, before or after a component"""

PREFIXES: dict[str, frozenset[Role]] = {
    "lycoris": frozenset(),
    "lora_unet": _DENOISER,
    "lora_transformer": _DENOISER,
    "lora_prior_unet": _DENOISER,
    "oft_unet": _DENOISER,
    "lora_te": _TE1,
    "lora_te1": _TE1,
    "lora_te2": _TE2,
    "lora_te3": _TE3,
    "lora_prior_te": _TE1,
}
"""What LyCORIS, kohya and OneTrainer put before flattened names, with an underscore; an empty set is any role"""


DENOISERS = _DENOISER | _SECOND
"""Of components that may have the same names, such as the two of Wan 2.2: one for each half of the steps"""


def twins(parameters: Iterable[str]) -> dict[str, Role]:
    """The denoisers of a model that has several, by their names, with their roles; empty where it has one."""
    prefixes = dict(component_of(parameter) for parameter in parameters)
    found = {each.removesuffix("."): role for each in sorted(prefixes) for role in prefixes[each] & DENOISERS}
    return found if "denoiser_2" in found.values() and len(found) > 1 else {}


def fits(roles: frozenset[Role], own: frozenset[Role], chosen: Role | None) -> bool:
    """Whether a name for some roles (none: any) may mean a parameter of a component, given which denoiser is chosen.

    Unless one is chosen, only a name that says so means the second.
    """
    if own & DENOISERS and chosen is not None:
        return chosen in own and (not roles or bool(roles & DENOISERS))
    if own == _SECOND:
        return bool(roles & own)
    return not roles or not own or bool(roles & own)


def split(module: str) -> list[tuple[frozenset[Role], str]]:
    """The readings of a file's name for a module: roles that it may be for (empty: any), and the name without prefix.

    The whole name comes first, for a model may have such a name itself.
    """
    found: list[tuple[frozenset[Role], str]] = [(frozenset(), module)]
    for prefix, roles in PREFIXES.items():
        if module.startswith(f"{prefix}_"):
            found.append((roles, module[len(prefix) + 1 :].lstrip("_")))  # Wan-Fun has two underscores
    waiting: list[tuple[frozenset[Role], str]] = [(frozenset(), module)]
    while waiting:
        outer, name = waiting.pop()
        inner = [(outer, name.removeprefix(wrapper)) for wrapper in WRAPPERS if name.startswith(wrapper)]
        inner += [(outer & roles or roles, name[len(p) :]) for p, roles in COMPONENTS.items() if name.startswith(p)]
        found += inner
        waiting += inner
    return found


def component_of(parameter: str) -> tuple[str, frozenset[Role]]:
    """All that stands before a model's parameter name and names a component, as in `pipe.dit.`, and its roles."""
    return next(reversed(list(components_of(parameter))), ("", frozenset()))


def components_of(parameter: str) -> Iterator[tuple[str, frozenset[Role]]]:
    """The prefixes of a name that name a component, and its roles: in `transformer.transformer.h`, each of the two.

    What follows a component is another one only where both have a role in common: the `transformer` of a text encoder
    is no denoiser.
    """
    before, known = "", frozenset[Role]()
    while True:
        rest = parameter[len(before) :]
        more = [wrapper for wrapper in WRAPPERS if rest.startswith(wrapper)]
        more += [p for p, roles in COMPONENTS.items() if rest.startswith(p) and (not known or known & roles)]
        if not more:
            return
        longest = max(more, key=len)
        before, known = before + longest, known & COMPONENTS.get(longest, known) or COMPONENTS.get(longest, known)
        if known:
            yield before, known
