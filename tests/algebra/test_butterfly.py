"""Two neighbouring stages of a butterfly are one of larger blocks, and what is no such pair stays as it is."""

import pytest
import torch
from torch import Tensor

from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.butterfly import joined
from lyc_fx.algebra.maps import Compose, Diagonal, Map


def integers(*sizes: int) -> Tensor:
    return torch.randint(-3, 4, sizes, generator=torch.Generator().manual_seed(sum(sizes))).double()


def stage(number: int, count: int, size: int) -> tuple[Map, ...]:
    """As LyCORIS has it."""
    apart = 2**number * size // 2
    return Swap(2, apart), Blocks(integers(count // size, size, size)), Swap(apart, 2)


def sizes(maps: tuple[Map, ...]) -> list[int]:
    return [each.matrices.shape[-1] for each in maps if isinstance(each, Blocks)]


def same(maps: tuple[Map, ...], count: int) -> bool:
    one = torch.eye(count).double()
    return torch.equal(Compose(joined(maps)).rows(one), Compose(maps).rows(one))


@pytest.mark.parametrize(
    ("stages", "wanted"), [(1, [4]), (2, [8]), (3, [8, 4]), (4, [8, 8])], ids=["one", "two", "three", "four"]
)
def test_pairs_are_joined(stages: int, wanted: list[int]) -> None:
    maps = tuple(step for number in range(stages) for step in stage(number, 96, 4))
    assert sizes(joined(maps)) == wanted
    assert same(maps, 96)


def test_the_first_ones_need_no_permutation() -> None:
    assert [type(each) for each in joined((*stage(0, 16, 4), *stage(1, 16, 4)))] == [Blocks]


NEAR_MISSES: dict[str, tuple[Map, ...]] = {
    "the farther stage first": (*stage(1, 24, 4), *stage(0, 24, 4)),
    "one stage twice": (*stage(0, 24, 4), *stage(0, 24, 4)),
    "a stage left out": (*stage(0, 48, 4), *stage(2, 48, 4)),
    "blocks of other sizes": (*stage(0, 24, 4), *stage(0, 24, 8)),
    "something between": (*stage(0, 24, 4), Diagonal(integers(24)), *stage(1, 24, 4)),
    "a block that all share": (Swap(2, 2), Blocks(integers(1, 4, 4)), Swap(2, 2), *stage(1, 24, 4)),
    "another permutation back": (*stage(1, 24, 4)[:2], Swap(2, 4)),
    "permutations alone": (Swap(2, 2), Swap(2, 2), Swap(2, 2)),
    "blocks of odd size": (Swap(2, 3), Blocks(integers(8, 3, 3)), Swap(3, 2)),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_keeps_its_blocks(name: str) -> None:
    maps = NEAR_MISSES[name]
    assert sizes(joined(maps)) == sizes(maps)
    assert same(maps, 48 if name == "a stage left out" else 24)


def test_gradients_pass() -> None:
    """Of activations, by the generators of two stages."""
    matrices = [integers(6, 4, 4).requires_grad_(), (integers(6, 4, 4) + 1).requires_grad_()]
    maps = Swap(2, 2), Blocks(matrices[0]), Swap(2, 2), Swap(2, 4), Blocks(matrices[1]), Swap(4, 2)
    x = integers(24, 3)
    found = [torch.autograd.grad(Compose(each).rows(x).square().sum(), matrices) for each in (maps, joined(maps))]
    assert sizes(joined(maps)) == [8]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
