"""One model with every way in which a weight can be stored or named, and the factors of an adapter for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.pytorch_utils import Conv1D

RANK, ALPHA, STRENGTH = 2, 3.0, 0.7
SCALE = STRENGTH * ALPHA / RANK
IDS = torch.tensor([[1, 4, 2], [7, 0, 10]])


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(3, 9, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,bti->ebto", self.up_proj, x).sum(0)


class Kinds(nn.Module):
    """Every layer reads the embedding, so that the outputs show which layers changed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(11, 6)})
        self.lm_head = nn.Linear(6, 11, bias=False)
        self.lm_head.weight = self.model["embed_tokens"].weight
        self.fused = nn.ModuleDict({"qkv_proj": nn.Linear(6, 15)})
        self.apart = nn.ModuleDict({f"{name}_proj": nn.Linear(6, 5) for name in "qkv"})
        self.inter = nn.ModuleDict({"query_key_value": nn.Linear(6, 15)})
        self.normed = weight_norm(nn.Linear(6, 9))
        self.square = Conv1D(6, 6)
        self.turned = nn.ConvTranspose1d(6, 5, 2, stride=2)
        self.first = nn.ModuleDict({"shared": nn.Linear(6, 7)})
        self.second = nn.ModuleDict({"shared": self.first["shared"]})
        self.experts = Experts()

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.model["embed_tokens"](ids)
        separate = [layer(x) for layer in self.apart.values()]
        outputs = (self.lm_head(x), self.fused["qkv_proj"](x), *separate, self.inter["query_key_value"](x))
        twice = self.first["shared"](x) + self.second["shared"](torch.tanh(x))
        return *outputs, self.normed(x), self.square(x), self.turned(x.mT), twice, self.experts(x)


def kinds(dtype: torch.dtype = torch.float64) -> Kinds:
    return Kinds().to(dtype).eval()


@dataclass(frozen=True)
class Kind:
    """A module as an adapter file names it, the sides of its factors, and what their product is added to."""

    module: str
    sides: tuple[int, int]
    added: Callable[[Tensor], dict[str, Tensor]]
    """Of the change `(out, in)`, the change of each parameter"""

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Up `(out, r)` and down `(r, in)`."""
        rng, (height, width) = torch.Generator().manual_seed(len(self.module)), self.sides
        shapes = ((height, RANK), (RANK, width))
        up, down = (torch.randn(s, generator=rng, dtype=torch.float64).div(2).to(dtype) for s in shapes)
        return up, down

    def wanted(self, model: Kinds) -> dict[str, Tensor]:
        """The parameters that change, and their values by the closed formula, in float64."""
        up, down = (factor.double() for factor in self.factors(model.lm_head.weight.dtype))
        state = effective(model)
        return {name: state[name].double() + change for name, change in self.added(SCALE * up @ down).items()}


def whole(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda change: {f"{name}.weight": change}


def effective(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the layers multiply by, those that are computed or known by a second name among them."""
    apart = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    return apart | {"normed.weight": model.get_submodule("normed").weight.detach()}


KINDS = {
    "tied embedding": Kind("model.embed_tokens", (11, 6), whole("model.embed_tokens")),
    "tied head": Kind("lm_head", (11, 6), whole("lm_head")),
    "part of a fused one": Kind(
        "fused.k_proj", (5, 6), lambda change: {"fused.qkv_proj.weight": nn.functional.pad(change, (0, 0, 5, 5))}
    ),
    "fused, for separate ones": Kind(
        "apart.qkv_proj",
        (15, 6),
        lambda change: {f"apart.{n}_proj.weight": part for n, part in zip("qkv", change.split(5), strict=True)},
    ),
    "interleaved": Kind("inter.query_key_value", (15, 6), whole("inter.query_key_value")),
    "weight-normed": Kind("normed", (9, 6), whole("normed")),
    "Conv1D": Kind("square", (6, 6), lambda change: {"square.weight": change.t()}),
    "transposed": Kind("turned", (6, 10), lambda change: {"turned.weight": change.reshape(6, 5, 2)}),
    "shared": Kind(
        "first.shared",
        (7, 6),
        lambda change: {"first.shared.weight": change, "second.shared.weight": change},
    ),
}
