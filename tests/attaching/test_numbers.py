"""Attached adapters compute what merged ones do, and nothing of the model changes."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nets import CASES, VARIANTS, Case, random_for, randomized
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

STRENGTHS = (0.7, -1.3)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv transposed": (lambda: nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1, output_padding=1), (2, 6, 4, 5)),
    "conv1d of gpt": (lambda: Conv1D(15, 6), (2, 5, 6)),
    "square conv1d of gpt": (lambda: Conv1D(6, 6), (2, 5, 6)),
}
EVERY = ("linear", "conv2d-grouped-dilated", "conv transposed", "square conv1d of gpt")
"""Layers that are tried with all variants"""
MORE = tuple(Case(name, build, size, "") for name, (build, size) in LAYERS.items())


def logical(layer: nn.Module) -> tuple[int, ...]:
    shape = tuple(layer.weight.shape)  # type: ignore[union-attr, arg-type]
    return shape[::-1] if isinstance(layer, Conv1D) else shape


def agree(model: nn.Module, adapters: object, strength: object, *inputs: Tensor) -> None:
    """With the model that has the adapters merged."""
    merged = copy.deepcopy(model)
    for module in merged.modules():
        module.__dict__.pop("forward", None)
        module._modules.pop("lyc_fx", None)
    lyc_fx.merge(merged, adapters, strength)  # type: ignore[arg-type]
    for x in inputs:
        torch.testing.assert_close(model(x), merged(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", (*CASES, *MORE), ids=lambda case: case.name)
def test_every_family_on_every_layer(case: Case) -> None:
    """A layer for each algorithm, so that one capture does for all; each then gets the adapter of the one before it."""
    if case.name == "addmm":
        pytest.skip("a class of the tests; transformers' own is among the cases")
    layer = case.build()
    few = None if case.name in EVERY else ("locon", "lokr", "diag-oft", "full", "norm")
    tried = [v for v in VARIANTS if few is None or (v[0].name in few and len(v[1]) <= 2)]
    made = [a for v in tried if (a := random_for(v, logical(layer), dtype=torch.float64)) is not None]
    assert len(made) >= 3 or "norm" in case.name
    model = Branches(copy.deepcopy(layer) for _ in made).double()
    x = torch.randn(case.input, dtype=torch.float64)
    base, attached = model(x), lyc_fx.attach(model)
    for turned in range(2):
        adapters = of(*(Entry(f"{i}", "weight", made[i - turned], (f"{i}",)) for i in range(len(made))))
        for strength in STRENGTHS:
            report = attached.set(adapters, strength)
            assert [row.target for row in report.applied] == [f"{i}.weight" for i in range(len(made))]
            agree(model, adapters, strength, x)
    attached.detach()
    names = ["", *(f"{i}" for i in range(len(made)))]
    assert all(map(torch.equal, model(x), base)) and [name for name, _ in model.named_modules()] == names


class Branches(nn.ModuleList):
    """Layers of one input."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self]


def linear(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).double()


def made(model: nn.Module, name: str, family: str = "locon", *, rank: int = 2, leaf: str = "weight") -> Entry:
    kind = next(each for each in FAMILIES if each.name == family)
    shape = tuple(model.get_parameter(f"{name}.{leaf}").shape)
    adapter = random_adapter(kind, shape, rank=rank, alpha=3.0, dtype=torch.float64)
    return Entry(name, leaf, adapter, (name,))


def of(*entries: Entry) -> AdapterSet:
    return AdapterSet(entries, "test.safetensors")


@pytest.mark.parametrize("size", [(6,), (4, 6), (2, 4, 6), (2, 3, 4, 6), (0, 6), (1, 6)], ids=str)
def test_inputs_of_any_rank_and_size(size: tuple[int, ...]) -> None:
    model = linear(6, 15)
    adapters = of(made(model, "0", "lokr"))
    lyc_fx.attach(model, adapters, 0.7)
    agree(model, adapters, 0.7, torch.randn(size, dtype=torch.float64))


def test_an_image_without_a_batch_and_indices_of_any_rank() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv": nn.Conv2d(6, 10, 3), "embed": nn.Embedding(7, 6)}).double()
    adapters = of(made(model, "conv"), made(model, "embed"))
    image, indices = torch.randn(6, 5, 7, dtype=torch.float64), torch.tensor([[[1, 0], [6, 3]]])
    merged = copy.deepcopy(model)
    lyc_fx.merge(merged, adapters, 0.7)
    lyc_fx.attach(model, adapters, 0.7)
    for name, x in (("conv", image), ("embed", indices), ("embed", indices[0, 0, 0])):
        torch.testing.assert_close(model[name](x), merged[name](x), rtol=1e-9, atol=1e-9)


def test_several_sets_block_weights_and_biases() -> None:
    model = linear(6, 15, 7)
    first, second = of(made(model, "0"), made(model, "1", "loha")), of(made(model, "0", "diag-oft", rank=3))
    bias = of(Entry("0", "bias", random_adapter(next(f for f in FAMILIES if f.name == "full"), (15,)), ("0",)))
    blocks = {"1.*": 0.5, "*": -2.0}
    choices: list[object] = [[(first, 0.3), (second, 0.9)], [(first, blocks), (bias, 1.5)], [(bias, 0.2)], []]
    attached = lyc_fx.attach(model)
    for choice in choices:
        attached.set(choice)  # type: ignore[arg-type]
        agree(model, choice, 1.0, torch.randn(4, 6, dtype=torch.float64)) if choice else None
    assert torch.equal(
        model[0](torch.ones(6).double()), nn.functional.linear(torch.ones(6).double(), *model[0]._parameters.values())
    )


def test_one_after_another() -> None:
    model = linear(6, 15)
    choice = [(of(made(model, "0", "ia3")), 0.5), (of(made(model, "0")), 0.9)]
    attached = lyc_fx.attach(model, choice, sequential=True)
    merged = linear(6, 15)
    lyc_fx.merge(merged, choice, sequential=True)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), merged(x), rtol=1e-9, atol=1e-9)
    attached.set(choice[1:], sequential=True)
    agree(model, choice[1:], 1.0, x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


@pytest.mark.parametrize("names", [("head",), ("embed",), ("head", "embed")], ids=str)
def test_a_tied_weight_is_adapted_where_it_was_asked_for(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), torch.tensor([[3, 0, 10]])
    entries = [Entry(name, "weight", made(model, "embed").adapter, (name,)) for name in names]
    w = model.embed.weight.detach()
    change = 0.7 * entries[0].adapter.change(w, 1.0)
    lyc_fx.attach(model, of(*entries), 0.7)
    looked_up = w + change if "embed" in names else w
    head = w + (0.7 * entries[-1].adapter.change(w, 1.0) if "head" in names else 0.0)
    if len(names) == 2:
        looked_up, head = w + 0.7 * entries[1].adapter.change(w, 1.0), w + 0.7 * entries[0].adapter.change(w, 1.0)
    torch.testing.assert_close(model(x), looked_up[x] @ head.T, rtol=1e-9, atol=1e-9)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(12, 2, 15, batch_first=True)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: nn.TransformerEncoderLayer(12, 2, 15, batch_first=True), ("linear1", "self_attn.out_proj", "norm1")),
        (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 15, batch_first=True), 2),
            ("layers.1.linear2",),
        ),
        (lambda: nn.Sequential(randomized(nn.GroupNorm(2, 12)), nn.Linear(12, 7)), ("0", "1")),
    ],
    ids=["encoder layer", "encoder", "norm"],
)
def test_modules_that_read_parameters_of_others(build: Callable[[], nn.Module], names: tuple[str, ...]) -> None:
    """The fast path of an encoder layer reads the weights of its linear layers without calling them."""
    torch.manual_seed(0)
    model = build().double().eval().requires_grad_(False)
    kinds = {name: "norm" if "norm" in name or (name == "0" and len(names) == 2) else "locon" for name in names}
    adapters = of(*(made(model, name, kind) for name, kind in kinds.items()))
    attached = lyc_fx.attach(model, adapters, 0.7)
    x = torch.randn(2, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        agree(model, adapters, 0.7, x)
        attached.set(adapters, -0.2)
        agree(model, adapters, -0.2, x)
