"""On every layer kind, what a structure or a map does to activations is what it does to the weight, exactly.

Kinds come from the table of layers, and structures from the table of structures: a new one is tried with all others.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structures import STRUCTURES, drawn, exact, integers
from torch import Tensor

from lyc_fx.algebra.added import Added
from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.joined import joined
from lyc_fx.algebra.layer import NoChain
from lyc_fx.algebra.maps import Compose, Diagonal, Map
from lyc_fx.algebra.shear import Shear
from lyc_fx.graph.layers import Call, kinds
from lyc_fx.graph.layers.kind import Arguments

aten = torch.ops.aten
X_FIRST = {
    "Linear": False, "Addmm": True, "Matmul": True, "Mm": True, "Bmm": True, "Embedding": True, "Convolution": False,
    "TransposedConvolution": True, "AnyConvolution": False,
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    call: Call
    x: Tensor

    def outputs(self, weight: Tensor) -> Tensor:
        return self.call.base(self.x, weight, None)


@st.composite
def layers(draw: st.DrawFn, op: Any) -> Drawn:
    """A call of an operator, with any groups, strides, paddings and dilations."""
    kind = kinds()[op]
    given: dict[str, Any] = {argument.name: None for argument in op._schema.arguments if not argument.kwarg_only}
    x_first, groups, dims = X_FIRST[type(kind).__name__], 1, 0
    if kind.spatial:
        dims = draw(st.integers(1, 3)) if op is aten.convolution.default else int(op._schema.name[-2])
        groups = draw(st.sampled_from([1, 1, 2, 3]))
        transposed = x_first or (op is aten.convolution.default and draw(st.booleans()))
        x_first = transposed
        stride = [draw(st.integers(1, 3)) for _ in range(dims)]
        values = {
            "stride": stride,
            "padding": [draw(st.integers(0, 2)) for _ in range(dims)],
            "dilation": [draw(st.integers(1, 2)) for _ in range(dims)],
            "output_padding": [draw(st.integers(0, s - 1)) if transposed else 0 for s in stride],
            "transposed": transposed,
            "groups": groups,
        }
        if op._overloadname == "padding":
            values |= {"padding": draw(st.sampled_from(["same", "valid"])), "stride": [1] * dims}
        given |= {name: value for name, value in values.items() if name in given}
    if kind.looks_up:
        given |= {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    first, second = groups * draw(st.integers(1, 6)), draw(st.integers(1, 12))
    call = Call(
        kind=kind, arguments=Arguments(op, given), shape=(first, second, *kernel), x_first=x_first, groups=groups,
        looks_up=kind.looks_up, spatial=kind.spatial, dtype=torch.float64,
    )  # fmt: skip
    if kind.looks_up:
        x = integers(draw, 2, 4).abs().long() % first
    else:
        channels = first if x_first else second * groups
        x = integers(draw, 2, channels, *[7] * dims) if dims else integers(draw, 3, channels)
        if dims > 1 and draw(st.booleans()):
            x = x.contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    return Drawn(call, x)


def channels_of(call: Call, rows: bool) -> int:
    return call.shape[0] if rows else call.shape[1]


OPS = sorted(kinds(), key=str)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("op", OPS, ids=str)
@exact
@given(data=st.data())
def test_a_structure(name: str, op: Any, data: st.DataObject) -> None:
    drawn_layer = data.draw(layers(op))
    call = drawn_layer.call
    structure = data.draw(drawn(STRUCTURES[name], call.shape))
    try:
        found = structure.act(call, drawn_layer.x, -2.0)
    except NoChain as reason:
        allowed = {
            "hadamard": ("two full tensors",),
            "kronecker": ("do not fall into the layer's",),
        }
        assert any(text in str(reason) for text in allowed[name])
    else:
        assert torch.equal(found, drawn_layer.outputs(-2 * structure.value(call.shape)))


@pytest.mark.parametrize("op", OPS, ids=str)
@exact
@given(data=st.data())
def test_low_ranks_are_joined(op: Any, data: st.DataObject) -> None:
    """Beside others, whatever their order; an embedding keeps its tables."""
    drawn_layer = data.draw(layers(op))
    call, x = drawn_layer.call, drawn_layer.x
    names = data.draw(st.permutations(["low", "low", "khatri_rao", "tucker", "dense"]))
    structures = [data.draw(drawn(STRUCTURES[name], call.shape)) for name in names]
    sums = [Added(structure, float(scale)) for scale, structure in enumerate(structures, -3)]
    found = joined(call, sums)
    in_order = joined(call, sums, in_order=True)
    narrow = [name in ("low", "khatri_rao") for name in names]
    assert len(found) == (5 if call.looks_up else 3)
    runs = sum(here and not before for before, here in zip([False, *narrow], narrow, strict=False))
    assert len(in_order) == (5 if call.looks_up else 2 + runs)
    change = sum(each.change(torch.zeros(call.shape, dtype=torch.float64)) for each in sums)
    for actions in (found, in_order):
        assert torch.equal(
            sum(each.structure.act(call, x, each.scale) for each in actions), drawn_layer.outputs(change)
        )


def diagonal(draw: st.DrawFn, count: int) -> Map:
    return Diagonal(integers(draw, count))


def shear(draw: st.DrawFn, count: int) -> Map:
    r = draw(st.integers(1, 3))
    return Shear(integers(draw, count, r), integers(draw, r, count), 2.0)


def rotation(draw: st.DrawFn, count: int) -> Map:
    size = draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0]))
    return Blocks(integers(draw, draw(st.sampled_from([1, count // size])), size, size))


def swap(draw: st.DrawFn, count: int) -> Map:
    sizes, left = [], count
    for _ in range(3):
        sizes.append(draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= sizes[-1]
    return Swap(*sizes)


def composed(draw: st.DrawFn, count: int) -> Map:
    return Compose(tuple(make(draw, count) for make in (swap, diagonal, rotation)))


def butterfly(draw: st.DrawFn, count: int) -> Map:
    """Some stages of blocks of any even size, of which neighbours are joined; one that is none between them."""
    stages, half = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    steps: list[Map] = [diagonal(draw, count)]
    for stage in range(stages):
        apart = 2**stage * half
        if count % (2 * apart):
            break
        blocks = Blocks(integers(draw, count // (2 * half), 2 * half, 2 * half))
        steps += [Swap(2, apart), blocks, Swap(apart, 2)]
    return Compose((*steps, diagonal(draw, count)))


MAPS = {make.__name__: make for make in (diagonal, shear, rotation, swap, composed, butterfly)}


@pytest.mark.parametrize("on_rows", [True, False], ids=["rows", "inputs"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("op", OPS, ids=str)
@exact
@given(data=st.data())
def test_a_map(name: str, op: Any, on_rows: bool, data: st.DataObject) -> None:
    """`M · W` and `W · M`, each against the matrix that the map makes of the identity."""
    layer = data.draw(layers(op))
    call = layer.call
    count = channels_of(call, on_rows)
    made = data.draw(st.composite(lambda draw: MAPS[name](draw, count))())
    weight = data.draw(st.composite(lambda draw: integers(draw, *call.shape))())
    matrix = made.rows(torch.eye(count).double())
    assert torch.equal(made.columns(torch.eye(count).double()), matrix)
    flat = weight.flatten(1)
    turned = (matrix @ flat).reshape(call.shape) if on_rows else torch.einsum("oi...,ij->oj...", weight, matrix)
    if on_rows:
        assert torch.equal(made.rows(weight), turned)
    elif flat.shape[1] == count:
        assert torch.equal(made.columns(weight), turned)
    try:
        found = acted(made, layer, weight, on_rows)
    except NoChain as reason:
        allowed = ("across the layer's groups", "taps of the kernel", "an embedding reads single rows")
        assert any(text in str(reason) for text in allowed)
        assert call.groups > 1 or (not on_rows and flat.shape[1] != count) or call.looks_up
    else:
        assert torch.equal(found, layer.outputs(turned))


def acted(made: Map, layer: Drawn, weight: Tensor, on_rows: bool) -> Tensor:
    call, x = layer.call, layer.x
    if on_rows and call.looks_up:
        return made.look_up(call, x, layer.outputs(weight))
    if on_rows == call.x_first:
        return call.base(made.act(call, x, on_rows=on_rows, turned=on_rows), weight, None)
    return made.act(call, layer.outputs(weight), on_rows=on_rows, turned=not on_rows)
