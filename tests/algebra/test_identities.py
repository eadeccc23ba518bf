"""Every form of every structure is the same change, exactly: small integers in float64 do not round.

Structures are generated from a table, so that a new one is tried with all others the day it is added.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import VARIANTS, Variant, random_for, variant_id
from structures import STRUCTURES, Shape, drawn, exact, integers
from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Dense, Hadamard, Kron, Low, Structure, Tucker, Weighted

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12)) | st.tuples(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)
)


def entries(structure: Structure, shape: Shape) -> Tensor:
    """By the formula in the structure's docstring, entry by entry, apart from its code."""
    if isinstance(structure, Dense):
        return structure.tensor.reshape(shape)
    if isinstance(structure, Low):
        right = structure.right.reshape(structure.left.shape[1], shape[1], -1)
        return torch.einsum("or,rik->oik", structure.left, right).reshape(shape)
    if isinstance(structure, Weighted):
        right = structure.right.reshape(structure.left.shape[1], shape[1], -1)
        return torch.einsum("o,or,r,rik->oik", structure.rows, structure.left, structure.ranks, right).reshape(shape)
    if isinstance(structure, Tucker):
        core = structure.core.flatten(2) if structure.core.dim() > 2 else structure.core.unsqueeze(-1)
        return torch.einsum("pqk,op,qi->oik", core, structure.left, structure.right).reshape(shape)
    if isinstance(structure, Hadamard):
        return entries(structure.left, shape) * entries(structure.right, shape)
    assert isinstance(structure, Kron)
    (l, m), (out, inner, *kernel) = structure.left.shape, shape  # noqa: E741
    block = entries(structure.right, (out // l, inner // m, *kernel))
    rows = [torch.cat([structure.left[a, b] * block for b in range(m)], 1) for a in range(l)]
    return torch.cat(rows)


@pytest.mark.parametrize("name", STRUCTURES)
@exact
@given(data=st.data(), shape=shapes)
def test_each_form_is_the_same_change(name: str, data: st.DataObject, shape: Shape) -> None:
    structure = data.draw(drawn(STRUCTURES[name], shape))
    wanted = entries(structure, shape)
    assert torch.equal(structure.value(shape), wanted)
    left, right = structure.pair()
    assert torch.equal((left @ right).reshape(shape), wanted)
    weight = data.draw(st.composite(lambda draw: integers(draw, *shape))())
    total = weight.clone()
    structure.add_to(total, -2.0)
    assert torch.equal(total, weight - 2 * wanted)
    for axis in (0, 1):
        others = [dim for dim in range(len(shape)) if dim != axis]
        assert torch.equal(structure.dot(weight, axis), (weight * wanted).sum(others))
        assert torch.equal(structure.squares(shape, axis), wanted.square().sum(others))


PLAIN = [(f, layout) for f, layout in VARIANTS if issubclass(f, Additive) and "magnitude" not in layout]


@pytest.mark.parametrize("variant", PLAIN, ids=variant_id)
@exact
@given(data=st.data(), sizes=shapes, r=st.integers(1, 4))
def test_a_part_is_a_part_of_the_whole(variant: Variant, data: st.DataObject, sizes: Shape, r: int) -> None:
    """Rows and columns cut from the factors, where the family can be cut there."""
    shape = next((s for s in (sizes, sizes[:1], (*sizes[:2], 5)) if random_for(variant, s, rank=r) is not None), None)
    if shape is None:
        return
    made = random_for(variant, shape, rank=r, alpha=None, dtype=torch.float64)
    assert made is not None
    adapter = made.with_factors({name: factor.mul(3).round() for name, factor in made.factors().items()})
    assert isinstance(adapter, Additive)
    whole = adapter.product(shape)
    start = data.draw(st.integers(0, shape[0] - 1))
    stop = data.draw(st.integers(start + 1, shape[0]))
    part = adapter.rows(start, stop, shape)
    assert isinstance(part, Additive)
    rows = (stop - start, *shape[1:])
    part.fit(rows)
    assert torch.equal(part.product(rows) * part.scale, whole[start:stop] * adapter.scale)
    if len(shape) < 2:
        return
    start = data.draw(st.integers(0, shape[1] - 1))
    stop = data.draw(st.integers(start + 1, shape[1]))
    cut = adapter.columns(start, stop, shape)
    if cut is not None:
        columns = (shape[0], stop - start, *shape[2:])
        cut.fit(columns)
        assert torch.equal(cut.product(columns), whole[:, start:stop])
