"""Dynamic dimensions of inputs: the short notation for them, and warnings for those that export fixed all the same."""

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

import sympy
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError
from lyc_fx.graph.program import Range

DynamicShapes = str | Mapping[str, Any] | Sequence[Any] | None
FIXED = "_"
_BOUNDED = re.compile(r"(?:(\d+)<=)?[^\W\d]\w*(?:<=(\d+))?")


class SpecializedDimension(UserWarning):
    """A dimension that was declared dynamic is fixed in the captured program."""


def bind_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the example inputs by parameter of `forward`; inputs for `**kwargs` by their own names.

    Raises CaptureError if `forward` does not take these inputs.
    """
    try:
        signature = inspect.signature(model.forward)
        bound = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError) as error:
        raise CaptureError(f"{type(model).__name__}.forward does not take these inputs: {error}") from error
    variadic = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    for name in variadic:
        bound |= bound.pop(name, {})
    return bound


def name_kwargs(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Give `forward` a signature that names the inputs for `**kwargs`: torch.export misplaces shapes for these."""
    forward = model.forward
    signature = inspect.signature(forward)
    named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [name for name in inputs if name not in {p.name for p in named}]
    if not more:
        return

    @wraps(forward)
    def spelled(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    spelled.__signature__ = signature.replace(parameters=[*named, *extra])  # type: ignore[attr-defined]
    model.forward = spelled


def order_kwargs(kwargs: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments in the order of `forward`, which is the order of the captured program's inputs."""
    named = {name: kwargs[name] for name in inputs if name in kwargs}
    return named | {name: value for name, value in kwargs.items() if name not in named}


def export_shapes(shapes: DynamicShapes, inputs: Mapping[str, Any]) -> Any:
    """Turn the argument `dynamic_shapes` of `capture` into that of `torch.export`.

    - `None`: every size is fixed; `"auto"`: every dimension of every tensor may vary, if the model allows it;
    - a mapping from arguments to the names of their dimensions, `{"input_ids": "batch sequence"}`; `_` is a fixed
      dimension, `2<=batch<=8` one with bounds; nested inputs take nested mappings;
    - anything else is passed to torch.export unchanged.

    Raises CaptureError for an unknown argument, and for a text with another number of dimensions than the input.
    """
    if shapes is None:
        return None
    if shapes == "auto":
        return _nested(inputs, lambda value, path: dict.fromkeys(range(value.dim()), Dim.AUTO) or None, ())
    if not isinstance(shapes, Mapping) or not _texts(shapes):
        return shapes
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise CaptureError(f"dynamic_shapes names {', '.join(unknown)}; the inputs are {', '.join(inputs)}")

    def named(value: Tensor, path: tuple[Any, ...]) -> Any:
        text = _at(shapes, path)
        return None if text is None else _dims(str(text), value, path)

    return _nested(inputs, named, ())


def _texts(shapes: Any) -> bool:
    if isinstance(shapes, Mapping):
        return bool(shapes) and all(_texts(value) for value in shapes.values())
    return isinstance(shapes, str)


def _dims(text: str, value: Tensor, path: tuple[Any, ...]) -> dict[int, Any] | None:
    names = text.split()
    if len(names) != value.dim():
        raise CaptureError(
            f"dynamic_shapes[{path[0]!r}] = {text!r} names {len(names)} dimensions, the input has {value.dim()}: "
            f"{tuple(value.shape)}; write _ for a fixed dimension"
        )
    return {position: _dim(name, path) for position, name in enumerate(names) if name != FIXED} or None


def _dim(name: str, path: tuple[Any, ...]) -> Any:
    """A size that may vary: `batch`, or with bounds `batch<=8`, `2<=batch`, `2<=batch<=8`."""
    found = _BOUNDED.fullmatch(name)
    if found is None and not set(name) & set("<>="):
        return Dim.AUTO
    if found is None:
        raise CaptureError(
            f"dynamic_shapes[{path[0]!r}]: {name!r} is neither a name nor one with bounds, such as 2<=batch<=8"
        )
    least, greatest = (None if bound is None else int(bound) for bound in found.groups())
    return Dim.AUTO if least is None and greatest is None else Dim.AUTO(min=least, max=greatest)


def _nested(value: Any, of_tensor: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value, path)
    if type(value) in pytree.SUPPORTED_NODES and type(value) not in pytree.BUILTIN_TYPES:
        # A cache or a dataclass: torch.export takes the shapes of its flattened contents.
        return _nested(list(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]), of_tensor, path)
    if isinstance(value, Mapping):
        return {name: _nested(inner, of_tensor, (*path, name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        made = [_nested(inner, of_tensor, (*path, i)) for i, inner in enumerate(value)]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return None


def _at(shapes: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        if not isinstance(shapes, Mapping) or step not in shapes:
            return shapes if isinstance(shapes, str) else None
        shapes = shapes[step]
    return shapes


def size_ranges(program: ExportedProgram) -> dict[str, Range]:
    """Return the range of each dynamic size of an exported program, by symbol.

    Numbers that the model reads from tensors are symbols too; they are left out if they have no lower bound.
    """
    found = {}
    for symbol, bounds in program.range_constraints.items():
        if symbol.is_Symbol and isinstance(bounds.lower, sympy.Integer):
            upper = bounds.upper
            found[str(symbol)] = (int(bounds.lower), int(upper) if isinstance(upper, sympy.Integer) else None)
    return found


def warn_of_specialized(gm: GraphModule, shapes: Any, *, small: bool) -> None:
    """Warn, naming each dimension that was declared dynamic in `shapes` and is fixed in the captured program.

    With `small`, only of those for which the example has size 1 or 0.
    """
    wanted, inputs = _leaves(shapes), list(gm.graph.find_nodes(op="placeholder"))
    if len(wanted) != len(inputs):
        return  # shapes in another form of torch.export's, for which torch.export itself reports such dimensions
    fixed = []
    for spec, node in zip(wanted, inputs, strict=True):
        value = node.meta.get("val")
        if isinstance(spec, Mapping) and isinstance(value, Tensor):
            fixed += [
                f"{node.target}.shape[{i}] = {value.shape[i]}"
                for i, dim in spec.items()
                if dim is not None and is_concrete_int(value.shape[i]) and (not small or value.shape[i] < 2)
            ]
    if fixed:
        warnings.warn(
            f"these sizes are fixed in the captured program: {', '.join(fixed)}. The model's weights or its code "
            "require them, or the example has size 1 or 0 there (use 2 or more).",
            SpecializedDimension,
            stacklevel=3,
        )


def _leaves(shapes: Any) -> list[Any]:
    """Return one spec per flat input, in the order of the inputs."""
    if not isinstance(shapes, (Mapping, list, tuple)):
        return [shapes]
    if shapes and isinstance(shapes, Mapping) and all(isinstance(key, int) for key in shapes):
        return [shapes]
    inner = shapes.values() if isinstance(shapes, Mapping) else shapes
    return [leaf for value in inner for leaf in _leaves(value)]
