"""A model of three layers, and adapters that come and go."""

import torch
from nets import many, random_for
from torch import Tensor, nn

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import FAMILIES

FAMILY = {family.name: family for family in FAMILIES}


def net(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(8, 8) for name in "abc"}).to(dtype).eval()


class Chain(nn.Module):
    """Three layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x).tanh()
        return x


def adapter(kind: str, seed: int) -> Adapter:
    made = random_for((FAMILY[kind], FAMILY[kind].layouts[0]), (8, 8), rank=2, seed=seed)
    assert made is not None
    return made


A = many(a=adapter("locon", 0), b=adapter("loha", 1))
B = many(b=adapter("lokr", 2), c=adapter("diag-oft", 3))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()}
