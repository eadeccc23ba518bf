"""Inputs and outputs of a program as dicts, lists and tuples, in the place of a library's classes.

A stored program names the classes of its arguments and results (transformers' `ModelOutput`s and caches, diffusers'
outputs), and does not load in a process that has not imported them.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from lyc_fx.graph.copies import cloned
from lyc_fx.graph.inputs import pytree_info
from lyc_fx.graph.program import facts, remember

_FIELD = re.compile(r"\.([^\W\d]\w*)\b(?!\()")
"""A field of an object in a condition of the capture, `L['past_key_values'].layers[0].keys.size()[0] == 2`"""


def plain(program: GraphModule) -> GraphModule:
    """The same program, whose arguments and results are dicts (of an object's fields), lists, tuples and tensors.

    It no longer checks its inputs: what is exported from it does.
    """
    made = cloned(program)
    info = pytree_info(program)
    made.graph._codegen = _PyTreeCodeGen(_PyTreeInfo(info.orig_args, _plain(info.in_spec), _plain(info.out_spec)))
    made._forward_pre_hooks.clear()
    remember(made, guards=tuple(_FIELD.sub(r"['\1']", guard) for guard in facts(made).guards))
    made.recompile()
    return made


def _plain(spec: TreeSpec) -> TreeSpec:
    return pytree.tree_structure(_skeleton(spec))


def _skeleton(spec: TreeSpec) -> Any:
    """A plain object of such a structure."""
    if spec.is_leaf():
        return 0
    inner = [_skeleton(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return spec.type(inner)
    names = _names(spec)
    return inner if names is None else dict(zip(names, inner, strict=True))


def _names(spec: TreeSpec) -> Sequence[Any] | None:
    """What an object's class calls its parts, by what classes keep about their objects in a spec; None if it is silent.

    dict and `ModelOutput` keep a list of names, `register_dataclass` and `defaultdict` a list that contains one,
    namedtuples their class, and what capture registers an object with `names`.
    """
    context = spec.context
    choices = [context, getattr(context, "names", None), getattr(context, "_fields", None)]
    choices += context if isinstance(context, (list, tuple)) else []
    for names in choices:
        texts = isinstance(names, (list, tuple)) and all(isinstance(name, (str, int)) for name in names)
        if texts and len(names) == spec.num_children and len(set(names)) == len(names):
            return list(names)
    return None
