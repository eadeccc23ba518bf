"""Adapters that act where masks say: in one pass, each position as if the whole batch had its adapters."""

import copy

import pytest
import torch
from living import adapters, merged, net, same
from nets import CASES, VARIANTS, Case, one, random_for, variant_id
from torch import Tensor, nn

import lyc_fx

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blended(plain: nn.Module, choices: dict[str, object], masks: dict[str, Tensor | float], x: Tensor) -> Tensor:
    """The formula for one layer."""
    base = plain(x)
    return base + sum(  # type: ignore[return-value]
        masks[name] * (merged(copy.deepcopy(plain), choices[name])(x) - base) for name in masks
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_on_every_layer(case: Case) -> None:
    """Two sets, of which one may be the only one that maps the inputs, with masks that overlap.

    All families are served at once, so that a layer is captured once.
    """
    if case.name == "addmm":
        pytest.skip("a class of the tests")
    model = nn.Sequential(case.build()).double()
    shape, norm = tuple(model[0].weight.shape), "norm" in case.name  # type: ignore[union-attr, arg-type]
    plain, every = copy.deepcopy(model), case.name in ("linear", "conv2d-same")
    x = torch.randn(case.input, dtype=torch.float64)
    y = plain(x)
    first = case.name.startswith("conv") or case.name == "group-norm"
    grid = y.shape[2:] if first else y.shape[1:-1]
    rng = torch.Generator().manual_seed(3)
    over = "image" if len(grid) == 2 else "tokens"
    beside = random_for(next(v for v in VARIANTS if v[0].name == ("norm" if norm else "locon")), shape, seed=5)
    assert beside is not None
    choices: dict[str, object] = {"b": [(one(beside, "0"), -0.8)]}
    for variant in VARIANTS:
        found = random_for(variant, shape, dtype=torch.float64)
        if found is not None and (every or len(variant[1]) <= 2):
            choices[variant_id(variant)] = [(one(found, "0"), 0.6)]
    assert len(choices) > (1 if norm else 3)
    with lyc_fx.serve(model, choices) as served:  # type: ignore[arg-type]
        for name in list(choices)[1:]:
            masks: dict[str, Tensor | float]
            masks = {n: torch.rand(grid, dtype=torch.float64, generator=rng) for n in (name, "b")}
            if not grid or len(grid) == 3:
                masks = {name: 0.3, "b": -1.2}
            shaped = {n: m[..., None] if isinstance(m, Tensor) and not first else m for n, m in masks.items()}
            served.blend(masks, over=over)  # type: ignore[arg-type]
            torch.testing.assert_close(model(x), blended(plain, choices, shaped, x), rtol=1e-9, atol=1e-9)


def test_regions_of_tokens_equal_each_region_alone() -> None:
    """Through several layers; what no mask covers is the model without adapters, to the bit."""
    model, plain = net(), net()
    choices = {
        "a": [(adapters(model, "0", "2", rank=2), 0.7)],
        "b": [(adapters(model, "0", "2", family="oft-input", rank=3, seed=1), 1.4)],
    }
    alone = {name: merged(net(), choice)(X) for name, choice in choices.items()}
    served = lyc_fx.serve(model, choices)
    served.blend({"a": torch.tensor([1, 1, 0, 0, 0]), "b": torch.tensor([[0, 0, 1.0, 0, 0], [0, 0, 0, 1, 0]])})
    y = model(X)
    same(y[:, :2], alone["a"][:, :2])
    same(y[0, 2], alone["b"][0, 2])
    same(y[1, 3], alone["b"][1, 3])
    assert torch.equal(y[:, 4], plain(X)[:, 4]) and torch.equal(y[1, 2], plain(X)[1, 2])


class Image(nn.Module):
    """A convolution that halves an image, a layer of its pixels as tokens, and one of a text and of a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Linear(6, 4)
        self.text, self.time = nn.Linear(5, 4), nn.Linear(2, 4)

    def forward(self, image: Tensor, text: Tensor, time: Tensor) -> Tensor:
        y = self.tokens(self.conv(image).flatten(2).transpose(1, 2))
        return y + self.text(text).mean(1, keepdim=True) + self.time(time).unsqueeze(1)


def test_a_mask_over_an_image_at_every_resolution() -> None:
    torch.manual_seed(0)
    model = Image().double()
    plain, inputs = copy.deepcopy(model), [torch.randn(2, *s, dtype=torch.float64) for s in ((3, 7, 9), (3, 5), (2,))]
    left = torch.zeros(7, 9, dtype=torch.float64)
    left[:, :6] = 1.0
    names = ("conv", "tokens", "text", "time")
    choice = adapters(model, *names[1:])
    conv = random_for(next(v for v in VARIANTS if v[0].name == "lokr"), (6, 3, 3, 3), dtype=torch.float64)
    assert conv is not None
    served = lyc_fx.serve(model, {"s": [(choice, 0.9), (one(conv, "conv"), 0.4)]})
    with pytest.raises(
        lyc_fx.WrongArgument, match=r"results of a Linear have positions \(3,\), .*elsewhere=0.0 or 1.0"
    ):
        served.blend({"s": left}, over="image")
        model(*inputs)
    all_of_it = merged(copy.deepcopy(plain), [(choice, 0.9), (one(conv, "conv"), 0.4)])
    for elsewhere in (0.0, 1.0):
        served.blend({"s": left}, over="image", elsewhere=elsewhere)
        y = model(*inputs).unflatten(1, (4, 5))
        others = all_of_it if elsewhere else plain
        extra = others.text(inputs[1]).mean(1) + others.time(inputs[2])
        for net_of, columns in (
            (all_of_it, slice(0, 3)),
            (plain, slice(4, 5)),
        ):  # all of the left half, all of the right
            image = net_of.tokens(net_of.conv(inputs[0]).flatten(2).transpose(1, 2)).unflatten(1, (4, 5))
            same(y[:, :, columns], (image + extra[:, None, None])[:, :, columns])
    with pytest.raises(lyc_fx.WrongArgument, match=r"a Conv2d have positions \(4, 5\)"):
        served.blend({"s": torch.ones(6, 9)}, over="image", elsewhere=0.0)
        model(*inputs)


@torch.no_grad()
def test_compiled_other_masks_compile_nothing_again() -> None:
    model, plain = net(), net()
    choices = {
        "a": [(adapters(model, "0", "2", rank=2), 0.7)],
        "b": [(adapters(model, "0", "2", family="diag-oft", rank=3, seed=1), 1.4)],
    }
    served = lyc_fx.serve(model, choices)
    fast = torch.compile(model, fullgraph=True)
    served.blend({"a": torch.ones(5), "b": 0.25})
    fast(X)
    alone = {name: merged(net(), choice)(X) for name, choice in choices.items()}
    with torch.compiler.set_stance("fail_on_recompile"):
        for token in range(5):
            served.blend({"a": torch.eye(5)[token], "b": 0.0})
            y = fast(X)
            same(y[:, token], alone["a"][:, token])
            same(y[:, token - 1], plain(X)[:, token - 1])
        served.blend({"a": torch.zeros(5), "b": 1.0})
        same(fast(X), alone["b"])


def test_mistakes_are_said() -> None:
    model = net()
    served = lyc_fx.serve(model, {"a": [(adapters(model, "0"), 0.7)]})
    for masks, options, message in (
        ({"b": 1.0}, {}, "'b' is no set here"),
        ({}, {}, "no masks"),
        ({"a": torch.ones(2, 2, 2)}, {}, r"shape \(2, 2, 2\) is not over tokens"),
        ({"a": torch.tensor(float("nan"))}, {}, "not finite"),
        ({"a": torch.ones(5)}, {"over": "pixels"}, "over 'tokens' or 'image'"),
    ):
        with pytest.raises(lyc_fx.WrongArgument, match=message):
            served.blend(masks, **options)  # type: ignore[arg-type]
    served.blend({"a": torch.ones(3, 5)})
    with pytest.raises(lyc_fx.WrongArgument, match="a mask has 3 samples, and a Linear got 2"):
        model(X)
    with pytest.raises(lyc_fx.WrongArgument, match="'a' is in use"):
        served.remove("a")
