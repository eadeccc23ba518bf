"""Tensors that an adapter file holds as a whole and that the base lacks, or has in another shape.

Examples are an embedding with rows for new tokens, and a new classification head. PEFT saves such modules beside its
factors (`modules_to_save`), after the model was resized in memory. In the output folder, these tensors replace those of
the base or are added to them, and config.json is updated to match.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.algorithms.replace import Replace
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.named import names_for
from lyc_fx.binding.stack import Part, Stack
from lyc_fx.checkpoint.base import Base
from lyc_fx.errors import BadAdapter
from lyc_fx.merging.merged import merged
from lyc_fx.naming import Names

_SAVED = "base_model.model."
_LABELS = re.compile(r"(.+\.)?(score|classifier|(classifier|classification_head)\.out_proj)\.weight")
"""Heads with one row per label"""
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""From PEFT's `task_type` to the suffix of transformers' classes, which the head's name alone does not determine"""


@final
@dataclass(frozen=True)
class NewTensor:
    """A tensor of the output whose shape comes from the adapter file."""

    value: Tensor
    rows: int | None
    """The number of rows in the base; None if the base has no such tensor"""
    dtype: torch.dtype
    """The dtype in which it is written"""
    task: str | None = None
    """PEFT's `task_type` of its adapter file"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the output."""
        return tuple(self.value.shape)


def find_new_tensors(
    stack: Stack, source: Base, weights: Mapping[str, Weight], elsewhere: Callable[[], Mapping[str, str]] = dict
) -> dict[str, NewTensor]:
    """Find the tensors of a stack that the base lacks or has in another shape, by the base's names for them.

    Empty unless the base is a folder with a config.json that can be updated. `elsewhere` returns further names of the
    weights, and is called only if an adapter matches none of the known names.

    Raises BadAdapter for a strength other than 1: a tensor cannot be interpolated with one of another shape.
    """
    found: dict[str, NewTensor] = {}
    if not source.folder or not any(each.name == "config.json" for each in source.other_files):
        return found
    saved = [entry for part in stack.parts for entry in part.adapters.entries if _saved(entry)]
    names = names_for(saved, {name: weight.logical for name, weight in weights.items()}, elsewhere=elsewhere)
    common = next((w.dtype for w in weights.values() if w.dtype.is_floating_point), torch.float32)
    for part in stack.parts:
        for entry, name, rows in _whole(part, names, weights):
            if part.strength * part.factor(name) != 1:
                raise BadAdapter(
                    f"{part.adapters.source}: {entry.module} has another shape than in the base, so it can only be "
                    "written unchanged, at strength 1 (or leave it out with --exclude)"
                )
            assert isinstance(entry.adapter, Replace)
            dtype = common if rows is None else weights[name].dtype
            found[name] = NewTensor(entry.adapter.value, rows, dtype, part.adapters.task)
    return found


def _whole(part: Part, names: Names, weights: Mapping[str, Weight]) -> Iterator[tuple[Entry, str, int | None]]:
    """Yield the entries of one set that are new tensors, with the tensor's name and its number of rows in the base."""
    known = any(names.find(entry.module, entry.leaf) for entry in part.adapters.entries)
    others = [entry.module for entry in part.adapters.entries if not _saved(entry)]
    tops = {name.partition(".")[0] for name in (*weights, *others)}  # a new head is outside all of these modules
    for entry in filter(_saved, part.adapters.entries):
        assert isinstance(entry.adapter, Replace)
        shape, found = tuple(entry.adapter.value.shape), names.find(entry.module, entry.leaf)
        if not found and known and shape and entry.module.partition(".")[0] not in tops:
            yield entry, f"{entry.module}.{entry.leaf}", None
        elif len(found) == 1 and len(found[0]) == 1 and found[0][0].rows is None:
            name = found[0][0].parameter
            own = weights[name].logical
            if len(own) == len(shape) and own[1:] == shape[1:] and own != shape and weights[name].weight_norm is None:
                yield entry, name, own[0]


def _saved(entry: Entry) -> bool:
    return isinstance(entry.adapter, Replace) and all(key.startswith(_SAVED) for key in entry.keys)


def with_new_shapes(new_tensors: Mapping[str, NewTensor], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights with the new tensors added, and with the new shapes."""
    known = {
        n: replace(weights[n], shape=g.shape) if n in weights else Weight(g.shape, g.dtype)
        for n, g in new_tensors.items()
    }
    return {**weights, **known}


def merge_new_tensors(
    new_tensors: Mapping[str, NewTensor], binding: Binding, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Apply the other adapters of each new tensor to its value. Returns what is to be written, by name.

    `dtype` is the dtype of the output, or None for each tensor's own.
    """
    found = {}
    for name, each in new_tensors.items():
        changes = [bound.change(torch.device("cpu")) for bound in binding.active(name)]
        found[name] = merged(each.value.double(), changes, result=dtype or each.dtype).contiguous()
    return found


def update_config(config: dict[str, Any], new_tensors: Mapping[str, NewTensor]) -> dict[str, Any]:
    """Update a config.json, in place, for its model's new tensors: vocabulary size, labels, and model class."""
    for name, each in new_tensors.items():
        if each.rows is not None:
            for table in (config, *(t for t in config.values() if isinstance(t, dict))):
                if table.get("vocab_size") == each.rows:
                    table["vocab_size"] = each.shape[0]
        if _LABELS.fullmatch(name):
            config["id2label"] = {str(i): f"LABEL_{i}" for i in range(each.shape[0])}
            config["label2id"] = {f"LABEL_{i}": i for i in range(each.shape[0])}
        if each.rows is None and each.task in _CLASSES:
            config["architectures"] = [_for_task(str(a), each.task) for a in config.get("architectures") or ()]
    return config


def _for_task(architecture: str, task: str) -> str:
    return re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", _CLASSES[task], architecture)


def describe(new_tensors: Mapping[str, NewTensor]) -> list[str]:
    """Return notes for the user on what happens to the new tensors."""
    found = [
        f"{name} is not in the base: it is written as the adapter has it"
        if each.rows is None
        else f"{name} has {each.shape[0]} rows, the base {each.rows}: it is written as the adapter has it"
        for name, each in new_tensors.items()
    ]
    unknown = [name for name, each in new_tensors.items() if each.rows is None and each.task not in _CLASSES]
    if unknown:
        found.append(
            f"the model class with {', '.join(unknown)} is unknown, as adapter_config.json has no task_type for it: "
            "`architectures` in config.json is unchanged, so load the folder with the class that was trained"
        )
    return found
