"""Layers of odd sizes, and inputs for them."""

import torch
from peft_models import INPUTS
from torch import Tensor, nn


class Odd(nn.Module):
    """Sizes that are odd and all different, with and without bias; a convolution of a square kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 11)
        self.bare = nn.Linear(11, 5, bias=False)
        self.wide = nn.Linear(5, 13)
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.wide(torch.tanh(self.bare(torch.tanh(self.fc(x))))), self.conv(image)


def odd_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 7, generator=generator), torch.randn(2, 3, 7, 6, generator=generator)


INPUTS[Odd] = odd_inputs
