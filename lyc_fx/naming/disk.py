"""Names on disk and in memory: the classes of transformers 5 use other names than their checkpoints.

The tables of transformers are used if it is installed. A parameter that is split or joined on loading has no such name
(`lyc_fx.binding.experts` handles those of experts).
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from lyc_fx.naming.known import known_names


def names_on_disk(model: nn.Module) -> dict[str, str]:
    """Return a mapping from names in checkpoints to the names of a live model's parameters, where these differ."""
    found: dict[str, str] = {}
    for prefix, part in _library_models(model):
        reading, writing = _transforms(part), _transforms(part, reverse=True)
        for name in part.state_dict():
            other = _renamed(name, writing, reverse=True)
            if other not in (None, name) and _renamed(str(other), reading, reverse=False) == name:
                found[prefix + str(other)] = prefix + name
    return found


def names_in_memory(config: Mapping[str, Any], stored: Iterable[str]) -> dict[str, str]:
    """Return a mapping from names in the model's class to the `stored` names of a checkpoint, where these differ.

    `config` is the checkpoint's `config.json`. If transformers is not installed, or does not have the class, the rules
    of `lyc_fx.naming.known` are used.
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
    """Yield the outermost transformers models in a module, with the prefixes of their parameters."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:  # not imported, so the module cannot contain one of its models
        return
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, library.PreTrainedModel) and not any(path.startswith(each) for each in inside):
            prefix = f"{path}." if path else ""
            inside.append(prefix)
            yield prefix, module


def _transforms(model: Any, *, reverse: bool = False) -> list[Any]:
    """Return transformers' renamings and conversions for a model; none in versions without such tables."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return []
    found = get_model_conversion_mapping(model, add_legacy=False)
    return [each.reverse_transform() for each in reversed(found)] if reverse else list(found)


def _renamed(name: str, transforms: list[Any], *, reverse: bool) -> str | None:
    """Apply renamings to a parameter's name. None for a parameter that is converted (split or joined)."""
    if not transforms:  # for example in versions without such tables, whose other imports would fail
        return name
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    other, converted = rename_source_key(name, renamings, converters, reverse=reverse)
    return other if converted is None else None


def _empty_model(config: Mapping[str, Any]) -> Any:
    """Return the model that a configuration describes, on the meta device; None if transformers cannot make it."""
    try:
        import torch
        import transformers

        made = transformers.AutoConfig.for_model(**config)
        kind = getattr(transformers, str((config.get("architectures") or [""])[0]))
        with torch.device("meta"):
            return kind(made)
    except Exception:  # a configuration of another version may raise anything
        return None
