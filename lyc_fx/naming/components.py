"""Prefixes of module names: the components of a pipeline, in checkpoints and in adapter files.

Several text encoders may have the same inner names. A name with a prefix is for the components that have one of the
prefix's roles.
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
"""Prefixes of dotted names, in checkpoints and adapter files, with the roles of their components"""

WRAPPERS = ("base_model.model.", "pipe.")
"""Prefixes of PEFT and DiffSynth, before or after that of a component"""

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
"""Prefixes of flattened names by LyCORIS, kohya and OneTrainer, followed by `_`; an empty set means any role"""


DENOISERS = _DENOISER | _SECOND
"""The roles of denoisers, which may have the same inner names, such as the two of Wan 2.2 (for early and late steps)"""


def find_denoisers(parameters: Iterable[str]) -> dict[str, Role]:
    """Return the names of a model's denoisers, each with its role; empty if it has fewer than two."""
    prefixes = dict(component_of(parameter) for parameter in parameters)
    found = {each.removesuffix("."): role for each in sorted(prefixes) for role in prefixes[each] & DENOISERS}
    return found if "denoiser_2" in found.values() and len(found) > 1 else {}


def may_mean(roles: frozenset[Role], own: frozenset[Role], chosen: Role | None) -> bool:
    """Return whether a name for `roles` (empty: any) may mean a parameter of a component with the roles `own`.

    `chosen` is the denoiser that the user chose; if None, only names with the second denoiser's prefix mean it.
    """
    if own & DENOISERS and chosen is not None:
        return chosen in own and (not roles or bool(roles & DENOISERS))
    if own == _SECOND:
        return bool(roles & own)
    return not roles or not own or bool(roles & own)


def readings_of(module: str) -> list[tuple[frozenset[Role], str]]:
    """Return all readings of a file's name for a module: roles that it may be for (empty: any), and the inner name.

    The whole name comes first, since a model may have such a name itself.
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
    """Return the longest prefix of a parameter's name that names a component, such as `pipe.dit.`, and its roles."""
    return next(reversed(list(components_of(parameter))), ("", frozenset()))


def components_of(parameter: str) -> Iterator[tuple[str, frozenset[Role]]]:
    """Yield the prefixes of a name that name a component, with its roles: two for `transformer.transformer.h`.

    A segment after a component names another one only if both have a role in common: the `transformer` inside a text
    encoder is not a denoiser.
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
