"""Models for PEFT to adapt, with random factors, and the comparison with what was saved."""

import copy
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lyc_fx
from lyc_fx.binding.report import Report


class Net(nn.Module):
    """Linear with and without bias, convolutions and an embedding, out ≠ in."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 24)
        self.fc = nn.Linear(24, 40)
        self.bare = nn.Linear(40, 15, bias=False)
        self.norm = nn.LayerNorm(15)
        self.conv = nn.Conv2d(24, 10, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 10, 1)

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm(self.bare(self.fc(self.emb(ids)))), self.conv(image), self.point(image)


class Gpt(nn.Module):
    """Layers that store their weights `(in, out)`; one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(36, 12)
        self.c_proj = Conv1D(36, 36)
        nn.init.normal_(self.c_attn.bias)
        nn.init.normal_(self.c_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(torch.tanh(self.c_attn(x)))


class Experts(nn.Module):
    """Parameters of three dimensions, `(experts, out, in)`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 10, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("eoi,bi->ebo", self.gate_up_proj, x).chunk(2, -1)
        return torch.einsum("eoi,ebi->bo", self.down_proj, torch.tanh(gate) * up)


class Moe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(self.fc(x))


def images() -> tuple[Tensor, Tensor]:
    return torch.arange(6).reshape(2, 3), torch.randn(2, 24, 7, 6, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, config: str, folder: Path, **settings: Any) -> nn.Module:
    """PEFT's model with random factors, after it saved them."""
    adapted = peft.get_peft_model(copy.deepcopy(model), getattr(peft, config)(**settings)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted(*INPUTS[type(model)]())  # COFT shrinks its factors on the way
    adapted.save_pretrained(str(folder))
    return adapted


INPUTS: dict[type, Any] = {
    Net: images,
    Gpt: lambda: (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)),),
    Moe: lambda: (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def check(model: nn.Module, wanted: nn.Module, folder: Path) -> Report:
    """Merge what was saved, and compare every output."""
    live, inputs = copy.deepcopy(model), INPUTS[type(model)]()
    report = lyc_fx.merge(live, lyc_fx.load(folder))
    assert report.unused == ()
    with torch.no_grad():
        pairs = [each if isinstance(each, tuple) else (each,) for each in (live(*inputs), wanted(*inputs))]
        changed = live(*inputs)
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    base = model(*inputs)
    assert not torch.allclose(*(x[0] if isinstance(x, tuple) else x for x in (changed, base)), atol=1e-2)
    return report


def targets(report: Report) -> list[str]:
    return sorted(row.target for row in report.applied)
