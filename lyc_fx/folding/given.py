"""Tensors that an adapter has as a whole where the base has none of that shape: a vocabulary with new rows, a new head.

PEFT saves such modules beside its factors (`modules_to_save`). In memory the model was resized before; a folder is made
so by writing them in the place of the base's, or beside the others, and by a configuration that follows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.adapters import Entry
from lyc_fx.binding import Binding
from lyc_fx.errors import BadAdapter
from lyc_fx.families import merged
from lyc_fx.families.replace import Replace
from lyc_fx.fitting import Weight
from lyc_fx.folding.base import Base
from lyc_fx.named import names_for
from lyc_fx.naming import Names
from lyc_fx.stack import Part, Stack

_SAVED = "base_model.model."
_LABELS = re.compile(r"(.+\.)?(score|classifier|(classifier|classification_head)\.out_proj)\.weight")
"""Heads with a row for each label"""
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""By PEFT's `task_type`, the classes of transformers: a head's name is the same in several of them"""


@final
@dataclass(frozen=True)
class Given:
    """The whole value of one tensor of the output."""

    value: Tensor
    rows: int | None
    """Of the base's tensor; None where it has none"""
    dtype: torch.dtype
    task: str | None = None
    """For which PEFT trained it"""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


def given_by(
    stack: Stack, source: Base, weights: Mapping[str, Weight], elsewhere: Callable[[], Mapping[str, str]] = dict
) -> dict[str, Given]:
    """By the tensors' names, also those of `elsewhere`. Only for a folder, which has a configuration that can follow.

    Raises BadAdapter for one at another strength than 1: between it and a base of another shape there is nothing.
    """
    found: dict[str, Given] = {}
    if not source.folder or not any(each.name == "config.json" for each in source.carried):
        return found
    saved = [entry for part in stack.parts for entry in part.adapters.entries if _saved(entry)]
    names = names_for(saved, {name: weight.logical for name, weight in weights.items()}, elsewhere=elsewhere)
    common = next((w.dtype for w in weights.values() if w.dtype.is_floating_point), torch.float32)
    for part in stack.parts:
        for entry, name, rows in _whole(part, names, weights):
            if part.strength * part.factor(name) != 1:
                raise BadAdapter(
                    f"{part.adapters.source}: {entry.module} is of another shape than the base's: it can be written as "
                    "it is, at strength 1 only (--exclude leaves it out)"
                )
            assert isinstance(entry.adapter, Replace)
            dtype = common if rows is None else weights[name].dtype
            found[name] = Given(entry.adapter.value, rows, dtype, part.adapters.task)
    return found


def _whole(part: Part, names: Names, weights: Mapping[str, Weight]) -> Iterator[tuple[Entry, str, int | None]]:
    """The entries of one set that are such tensors, with the tensor's name and the rows that the base has of it."""
    known = any(names.find(entry.module, entry.leaf) for entry in part.adapters.entries)
    others = [entry.module for entry in part.adapters.entries if not _saved(entry)]
    tops = {name.partition(".")[0] for name in (*weights, *others)}  # a head stands beside all these, not in one
    for entry in filter(_saved, part.adapters.entries):
        assert isinstance(entry.adapter, Replace)
        shape, found = tuple(entry.adapter.value.shape), names.find(entry.module, entry.leaf)
        if not found and known and shape and entry.module.partition(".")[0] not in tops:
            yield entry, f"{entry.module}.{entry.leaf}", None
        elif len(found) == 1 and len(found[0]) == 1 and found[0][0].rows is None:
            name = found[0][0].parameter
            own = weights[name].logical
            if len(own) == len(shape) and own[1:] == shape[1:] and own != shape and weights[name].normed is None:
                yield entry, name, own[0]


def _saved(entry: Entry) -> bool:
    return isinstance(entry.adapter, Replace) and all(key.startswith(_SAVED) for key in entry.keys)


def as_weights(given: Mapping[str, Given], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights with the shapes that these will have."""
    known = {
        n: replace(weights[n], shape=g.shape) if n in weights else Weight(g.shape, g.dtype) for n, g in given.items()
    }
    return {**weights, **known}


def written(given: Mapping[str, Given], binding: Binding, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What is to be written: each value, with the other adapters of that weight, relative to it."""
    found = {}
    for name, each in given.items():
        changes = [bound.change(torch.device("cpu")) for bound in binding.active(name)]
        found[name] = merged(each.value.double(), changes, result=dtype or each.dtype).contiguous()
    return found


def followed(config: dict[str, Any], given: Mapping[str, Given]) -> dict[str, Any]:
    """A configuration for these: the size of its vocabulary, its labels, and the class that has such a head."""
    for name, each in given.items():
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


def notes(given: Mapping[str, Given]) -> list[str]:
    """What is said of them."""
    found = [
        f"{name} is new in the base: it is written as the adapter has it"
        if each.rows is None
        else f"{name} has {each.shape[0]} rows, the base {each.rows}: it is written as the adapter has it"
        for name, each in given.items()
    ]
    unknown = [name for name, each in given.items() if each.rows is None and each.task not in _CLASSES]
    if unknown:
        found.append(
            f"nothing says which class has {', '.join(unknown)} (task_type in adapter_config.json): `architectures` in "
            "config.json is as it was, so load the folder with the class that was trained"
        )
    return found
