"""A model of two layers whose parameters tests make odd, and adapters for it."""

import torch
from nets import many, random_for
from torch import Tensor, nn

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms.locon import LoCon


class Two(nn.Module):
    """Two linear layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def plain(shape: tuple[int, ...] = (4, 4), seed: int = 0) -> Adapter:
    adapter = random_for((LoCon, LoCon.layouts[0]), shape, seed=seed)
    assert adapter is not None
    return adapter


BOTH = many(a=plain(), b=plain(seed=1))


def two(dtype: torch.dtype = torch.float64) -> Two:
    torch.manual_seed(0)
    return Two().to(dtype)


def close(weight: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-12, atol=1e-12)


def same(state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name]), name
