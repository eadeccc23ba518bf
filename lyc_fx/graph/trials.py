"""Running a program on random inputs, at the sizes of its capture and at other sizes that it accepts."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError
from lyc_fx.graph.rewrite import RESHAPES

_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda s: s + 1, lambda s: s + 2, lambda s: 2 * s, lambda s: s + 8, lambda s: max(2, s - 1),
)  # fmt: skip
"""Other values to try for dynamic sizes: the first at which the program runs is used"""


def trials(gm: GraphModule) -> Iterator[list[Any]]:
    """Yield flat random inputs at the sizes of the capture, and, if sizes are dynamic, at other sizes."""
    captured = _sizes(gm)
    yield _inputs(gm, captured)
    for other in _OTHER_SIZES if captured else ():
        given = _inputs(gm, {symbol: other(size) for symbol, size in captured.items()})
        if _admits(gm, given):
            yield given
            return


def outputs(gm: GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Run a program and return its flat outputs. Its tensors, the inputs and the random state are left unchanged."""
    return _run(gm, inputs, lambda node, value: None)


def values(gm: GraphModule, inputs: Sequence[Any]) -> list[tuple[Node, Tensor]]:
    """Run a program and return the value of each node that has a tensor as its value."""
    found: list[tuple[Node, Tensor]] = []

    def seen(node: Node, value: Any) -> None:
        if isinstance(value, Tensor):
            found.append((node, value.clone()))  # a later node may write to it

    _run(gm, inputs, seen)
    return found


@final
class _Run(Interpreter):
    """Runs a program on copies of its tensors, and calls `seen` with the value of each node."""

    def __init__(self, gm: GraphModule, seen: Callable[[Node, Any], None]) -> None:
        super().__init__(gm)
        self._seen = seen
        self._copies: dict[str, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        if target not in self._copies:
            found = super().fetch_attr(target)
            self._copies[target] = found.detach().clone() if isinstance(found, Tensor) else found
        return self._copies[target]

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self._seen(n, value)
        return value


def _run(gm: GraphModule, inputs: Sequence[Any], seen: Callable[[Node, Any], None]) -> list[Any]:
    fresh = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
    devices = {v.device.index or 0 for v in fresh if isinstance(v, Tensor) and v.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(0)
        return pytree.tree_leaves(_Run(gm, seen).run(*fresh, enable_io_processing=False))


def _placeholders(gm: GraphModule) -> Iterator[Any]:
    for node in gm.graph.find_nodes(op="placeholder"):
        yield node.meta.get("val")


def _symbols(gm: GraphModule) -> dict[Any, torch.SymInt]:
    """Return the free symbols of the inputs' sizes, each with a size in which it occurs."""
    sizes = [s for v in _placeholders(gm) for s in (v.shape if isinstance(v, Tensor) else [v])]
    return {symbol: s for s in sizes if isinstance(s, torch.SymInt) for symbol in s.node.expr.free_symbols}


def _sizes(gm: GraphModule) -> dict[Any, int]:
    """Return the value of each symbol at capture."""
    return {symbol: int(_hint(symbol, size)) for symbol, size in _symbols(gm).items()}


def _hint(symbol: Any, size: torch.SymInt) -> Any:
    hints = size.node.shape_env
    known = getattr(hints, "backed_var_to_val", None) or getattr(hints, "var_to_val", {})
    return known.get(symbol, 2)


def _inputs(gm: GraphModule, sizes: dict[Any, int]) -> list[Any]:
    generator, rows = torch.Generator().manual_seed(0), _rows_looked_up(gm)
    nodes = list(gm.graph.find_nodes(op="placeholder"))
    return [_input(node.meta.get("val"), sizes, generator, rows.get(node, 2)) for node in nodes]


def _rows_looked_up(gm: GraphModule) -> dict[Node, int]:
    """The number of rows of the tables that inputs are indices of."""
    found: dict[Node, int] = {}
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        table, indices = node.args[:2]
        while indices.op == "call_function" and indices.target in RESHAPES:
            indices = indices.args[0]
        if indices.op == "placeholder":
            found[indices] = min(found.get(indices, int(table.meta["val"].shape[0])), int(table.meta["val"].shape[0]))
    return found


def _input(value: Any, sizes: dict[Any, int], generator: torch.Generator, rows: int) -> Any:
    """Make an input: normally distributed; indices of known tables, different ones where there are enough (a model may
    look for the largest); other integers and booleans 0 and 1, which are valid as most indices.
    """
    if isinstance(value, torch.SymInt):
        return _number(value, sizes)
    if not isinstance(value, Tensor):
        return value
    shape = [_number(size, sizes) for size in value.shape]
    if value.is_floating_point() or value.is_complex():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(value.dtype).to(value.device)
    count = prod(shape)
    if rows > 2 and count <= rows:
        integers = torch.randperm(rows, generator=generator)[:count].reshape(shape)
    else:
        integers = torch.randint(0, rows, shape, generator=generator)
        if shape and rows == 2:  # of a mask, so that no token sees none: runtimes differ in what comes of that
            integers[..., 0] = 1
    return integers.to(value.dtype).to(value.device)


def _number(size: int | torch.SymInt, sizes: dict[Any, int]) -> int:
    return size if isinstance(size, int) else int(size.node.expr.xreplace(sizes))


def _admits(gm: GraphModule, inputs: Sequence[Any]) -> bool:
    """Return whether the program's guards accept these inputs, and it runs on them."""
    spec = gm.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    args, kwargs = pytree.tree_unflatten(list(inputs), spec)
    try:
        for hook in gm._forward_pre_hooks.values():
            hook(gm, args, kwargs)
        outputs(gm, inputs)
    except (CaptureError, RuntimeError, AssertionError, IndexError, ValueError):
        return False
    return True
