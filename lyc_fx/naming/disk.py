"""Names on disk and in memory: transformers 5 has other ones in its classes than in their checkpoints, and knows both.

Its own tables are asked, where it is installed; what becomes several parameters, or is made of several, has no such
name (`lyc_fx.experts` knows those of experts).
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from lyc_fx.naming.known import known_names


def names_on_disk(model: nn.Module) -> dict[str, str]:
    """What the checkpoints of a live model's classes call its parameters, to the names that these have now."""
    found: dict[str, str] = {}
    for prefix, part in _library_models(model):
        reading, writing = _transforms(part), _transforms(part, reverse=True)
        for name in part.state_dict():
            other = _renamed(name, writing, reverse=True)
            if other not in (None, name) and _renamed(str(other), reading, reverse=False) == name:
                found[prefix + str(other)] = prefix + name
    return found


def names_in_memory(config: Mapping[str, Any], stored: Iterable[str]) -> dict[str, str]:
    """What the class of a checkpoint calls its parameters, to the names that are stored.

    `config` is the checkpoint's `config.json`. Where transformers is not installed, or has no such class, what is known
    here counts (`lyc_fx.naming.known`).
    """
    model = _empty_model(config)
    if model is None:
        return known_names(config, stored)
    transforms, own = _transforms(model), set(model.state_dict())
    found = {}
    for name in stored:
        other = _renamed(name, transforms, reverse=False)
        if other is not None and other != name and other in own:
            found[other] = name
    return found


def _library_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in a module, with the prefixes of their parameters."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:  # then nothing is of it
        return
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, library.PreTrainedModel) and not any(path.startswith(each) for each in inside):
            prefix = f"{path}." if path else ""
            inside.append(prefix)
            yield prefix, module


def _transforms(model: Any, *, reverse: bool = False) -> list[Any]:
    """The library's renamings and conversions for a model; none in versions that have no such tables."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return []
    found = get_model_conversion_mapping(model, add_legacy=False)
    return [each.reverse_transform() for each in reversed(found)] if reverse else list(found)


def _renamed(name: str, transforms: list[Any], *, reverse: bool) -> str | None:
    """Another name of the same parameter; None for one that is converted."""
    if not transforms:  # also where the library has no such tables
        return name
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    other, converted = rename_source_key(name, renamings, converters, reverse=reverse)
    return other if converted is None else None


def _empty_model(config: Mapping[str, Any]) -> Any:
    """The model that a configuration describes, on meta; None where transformers cannot tell."""
    try:
        import torch
        import transformers

        made = transformers.AutoConfig.for_model(**config)
        kind = getattr(transformers, str((config.get("architectures") or [""])[0]))
        with torch.device("meta"):
            return kind(made)
    except Exception:  # whatever a configuration that is not of this version makes the library raise
        return None
