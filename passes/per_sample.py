"""per_sample: each sample of a batch has strengths of its own, given at each call.

The sets' strengths, which splice made buffers, become one argument `strengths`, `(batch, sets)` in float32. A chain
multiplies its first factor with its strength, `x·(s·D)ᵀ`; here each sample's activations are multiplied, `s·(x·Dᵀ)`.
Chains that lower has made one (`[s₁D₁; s₂D₂]`) have a number for each of their columns.
"""

import operator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.errors import InvalidGraph, Unsupported, listing
from lyc_fx.graph.constants import constants
from lyc_fx.graph.inputs import add_inputs
from lyc_fx.graph.layers import named, weight_of
from lyc_fx.graph.layers.table import kinds
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import BANK, facts, fake_mode, owner, remember
from lyc_fx.graph.rewrite import RESHAPES, Emit, erase_unused
from lyc_fx.graph.slots import STRENGTHS
from lyc_fx.graph.strengths import MUL, Scaled, joined, scalars, without

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class PerSample(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        if facts(gm).staging is not None:
            raise InvalidGraph("the program is staged: its strengths are in what was computed; do this before that")
        read = {n: _set_of(n) for n in gm.graph.find_nodes(op="get_attr") if _is_strength(n)}
        if not read:
            raise InvalidGraph("the program has no adapter sets whose strengths could be an input")
        sets = sorted(set(read.values()))
        batch = _batch(gm)
        numbers = scalars(gm, read)
        places, faults = _places(gm, numbers)
        faults += [fault for node in places if (fault := _not_of_samples(node, batch)) is not None]
        if faults:
            raise Unsupported(listing("some strengths cannot be given for each sample:", list(dict.fromkeys(faults))))
        with fake_mode(gm):
            shaped = torch.empty((batch, len(sets)), dtype=torch.float32)
        [given] = add_inputs(gm, {STRENGTHS: shaped})
        _drop_strengths(gm, read, numbers)
        for node, scaled in places.items():
            _multiply(gm, node, scaled, given, sets)
        erase_unused(gm, [*numbers])
        for name in {str(node.target) for node in read}:
            path, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(path), leaf)
        remember(gm, styles=tuple(f"{BANK}.{each}.strength" for each in sets))
        return done(gm, "per_sample", len(places))


def _is_strength(node: Node) -> bool:
    parts = str(node.target).split(".")
    return len(parts) == 3 and parts[0] == BANK and parts[2] == "strength" and parts[1].isdigit()


def _set_of(node: Node) -> int:
    return int(str(node.target).split(".")[1])


def _batch(gm: GraphModule) -> Any:
    """The number of samples: the first size of the first input that has one."""
    for node in gm.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim():
            return value.shape[0]
    raise InvalidGraph("no input of the program has a dimension of samples")


def _places(gm: GraphModule, numbers: dict[Node, int]) -> tuple[dict[Node, Scaled], list[str]]:
    """The activations that strengths are proportional to, each with whose strengths; and what is not proportional."""
    constant, known = constants(gm), kinds()
    scaled: dict[Node, Scaled] = {}
    places: dict[Node, Scaled] = {}
    faults = []
    for node in gm.graph.nodes:
        if node.op != "call_function" or node in numbers:
            continue
        own = [source for source in node.all_input_nodes if source in numbers]
        carried = [source for source in node.all_input_nodes if source in scaled]
        if not own and not carried:
            continue
        found = _found(node, own, carried, numbers, scaled)
        if node in constant and found is not None:
            scaled[node] = found
        elif own and found is not None:
            places[node] = found
        elif node.target in known and carried == [weight_of(node)] and _fits(node, scaled[carried[0]]):
            places[node] = scaled[carried[0]]
        else:
            path = owner(node)[0] or node.name
            faults.append(f"  {path}: its adapter stays with the weight, which all samples share ({node.target})")
    return places, faults


def _found(
    node: Node, own: list[Node], carried: list[Node], numbers: dict[Node, int], scaled: dict[Node, Scaled]
) -> Scaled | None:
    """How strengths are in what an operator gives; None if that is not known."""
    if own:
        whole = node.target is MUL and len(own) == 1 and not carried
        return Scaled(((0, numbers[own[0]]),)) if whole else None
    if node.target is aten.cat.default:
        parts: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        return joined([(part, scaled.get(part)) for part in parts], dim)
    return scaled[carried[0]].through(carried[0], node) if len(node.all_input_nodes) == 1 else None


def _fits(node: Node, scaled: Scaled) -> bool:
    """Whether the stretches of a weight are outputs of its layer, which must be without a bias."""
    kind = kinds()[node.target]  # type: ignore[index]
    if kind.bias is not None and named(node).get(kind.bias) is not None:
        return False
    return len(scaled.stretches) == 1 or scaled.dim == (1 if kind.x_first(node) else 0)


def _not_of_samples(node: Node, batch: Any) -> str | None:
    shape = node.meta["val"].shape
    if len(shape) and (statically_known_true(shape[0] == batch) or _rows_of_samples(node, batch)):
        return None
    return (
        f"  {owner(node)[0] or node.name}: its activations are {tuple(shape)}, and there are {batch} samples: their "
        "first size must be that"
    )


def _rows_of_samples(node: Node, batch: Any) -> bool:
    """Whether rows of activations are those of the samples, in their order, several for each.

    A reshape of `(batch, …)` to `(batch · n, …)` leaves the rows of a sample together: GPT-2 calls its layers so, and a
    Kronecker chain its first convolution. That it was no other order is known from that reshape alone.
    """
    first = node.meta["val"].shape[0]
    while statically_known_true(node.meta["val"].shape[0] == first):
        if node.target in RESHAPES or node.target is aten.unflatten.int:
            source: Any = node.args[0]
            if statically_known_true(source.meta["val"].shape[0] == batch):
                return True
        kind = kinds().get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
        follow = named(node)[kind.x] if kind is not None else next(iter(node.all_input_nodes), None)
        if (
            not isinstance(follow, Node)
            or not isinstance(follow.meta.get("val"), Tensor)
            or not follow.meta["val"].dim()
        ):
            return False
        node = follow
    return False


def _drop_strengths(gm: GraphModule, read: dict[Node, int], numbers: dict[Node, int]) -> None:
    """Let products with numbers be products with what the numbers are without the strength."""
    for number in numbers:
        for user in [user for user in number.users if user not in numbers]:
            rest = without(Emit(gm, at=user, like=user, by="per_sample"), number, read)
            [other] = [arg for arg in user.args if arg is not number]
            user.args = (other, 1 if rest is None else rest)  # canonicalize drops a product with 1


def _multiply(gm: GraphModule, node: Node, scaled: Scaled, strengths: Node, sets: list[int]) -> None:
    """Multiply each sample's activations with its strengths, in float32 at least."""
    emit, value = Emit(gm, at=node.next, like=node, by="per_sample"), node.meta["val"]
    users = list(node.users)
    wide = torch.promote_types(value.dtype, torch.float32)
    kind = kinds().get(node.target)  # type: ignore[call-overload]
    channels = 1 if kind is not None and kind.spatial else value.dim() - 1
    shape = [-1] + [1] * (value.dim() - 1)
    several = not statically_known_true(value.shape[0] == strengths.meta["val"].shape[0])

    def factor(size: int, of_set: int | None) -> Node:
        """A number for each sample, beside its activations; repeated along their channels."""
        column = emit(aten.select.int, strengths, 1, 0 if of_set is None else sets.index(of_set))
        column = emit(aten.ones_like.default, column) if of_set is None else column
        if several:  # rows of each sample
            count = emit(operator.floordiv, emit(aten.sym_size.int, node, 0), emit(aten.sym_size.int, strengths, 0))
            column = emit(aten.expand.default, emit(aten.unsqueeze.default, column, 1), [-1, count])
            column = emit(aten.reshape.default, column, [-1])
        beside = emit(aten.view.default, column, shape)
        beside = beside if wide == torch.float32 else emit(aten.to.dtype, beside, wide)
        repeated = [-1] * value.dim()
        repeated[channels] = size
        return emit(aten.expand.default, beside, repeated) if size else beside

    parts = [factor(*each) for each in scaled.stretches]
    factors = parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, channels)
    product = emit(MUL, node, factors)
    product = product if value.dtype == wide else emit(aten.to.dtype, product, value.dtype)
    for user in users:
        user.replace_input_with(node, product)
