"""Several adapters in one batch: each sample as if it ran alone with its own."""

import copy
from collections.abc import Mapping

import pytest
import torch
from living import adapters, merged, net, same
from nets import CASES, VARIANTS, Case, one, random_for
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry

PICKS = ("a", None, "c", "b", "a")
Choices = Mapping[str, list[tuple[AdapterSet, float]]]
X = torch.randn(5, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def alone(plain: nn.Module, choices: Choices, x: Tensor, picks: tuple[str | None, ...] = PICKS) -> Tensor:
    """Each sample by a merged copy of its own."""
    models = {name: merged(copy.deepcopy(plain), choice) for name, choice in choices.items()}
    return torch.cat([(plain if n is None else models[n])(x[i : i + 1]) for i, n in enumerate(picks)])


def mixed(model: nn.Module) -> Choices:
    return {
        "a": [(adapters(model, "0", "2", rank=2), 0.7)],
        "b": [(adapters(model, "2", family="lokr", seed=1), -0.4)],
        "c": [(adapters(model, "0", "2", family="diag-oft", rank=3, seed=2), 1.3)],
    }


def test_mixed_algorithms_equal_each_sample_alone() -> None:
    model, plain = net(), net()
    choices = mixed(model)
    served = lyc_fx.serve(model, choices, rank=4)
    served.choose(PICKS)
    same(model(X), alone(plain, choices, X))
    assert {name: len(report.applied) for name, report in served.reports.items()} == {"a": 2, "b": 1, "c": 2}
    served.choose([None] * 2)
    torch.testing.assert_close(model(X[:2]), plain(X[:2]), rtol=1e-14, atol=1e-14)
    served.detach()
    assert torch.equal(model(X), plain(X)) and [name for name, _ in model.named_buffers()] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_on_every_layer(case: Case) -> None:
    """Two of a family, and one of another that the rest of the batch has, so that none can rely on being alone.

    All families are served at once, so that a layer is captured once.
    """
    if case.name == "addmm":
        pytest.skip("a class of the tests; transformers' own is among those of attach")
    model = nn.Sequential(case.build()).double()
    shape = tuple(model[0].weight.shape)  # type: ignore[union-attr, arg-type]
    plain, norm, every = copy.deepcopy(model), "norm" in case.name, case.name in ("linear", "conv2d-grouped-dilated")
    beside = next(v for v in VARIANTS if v[0].name == ("norm" if norm else "locon"))
    x = torch.randn(5, *case.input[1:], dtype=torch.float64)
    other = random_for(beside, shape, rank=1, dtype=torch.float64, seed=9)
    assert other is not None
    pairs = []
    for variant in VARIANTS:
        found = [random_for(variant, shape, dtype=torch.float64, seed=seed) for seed in range(2)]
        if found[0] is not None and found[1] is not None and (every or len(variant[1]) <= 2):
            pairs.append({"a": [(one(found[0], "0"), 0.6)], "b": [(one(found[1], "0"), -0.5)]})
    assert len(pairs) >= (1 if norm else 3)
    third = {"c": [(one(other, "0"), 0.8)]}
    named = {f"{name}{number}": choice for number, pair in enumerate(pairs) for name, choice in pair.items()}
    with lyc_fx.serve(model, named | third) as served:
        for number, pair in enumerate(pairs):
            served.choose([f"{name}{number}" if name in pair else name for name in PICKS])
            torch.testing.assert_close(model(x), alone(plain, pair | third, x), rtol=1e-9, atol=1e-9)


def test_the_base_runs_once_for_the_whole_batch() -> None:
    """However many algorithms there are; no weight of a layer's size is made for each sample."""
    model, sizes = net().float(), []
    served = lyc_fx.serve(model, mixed(model))
    served.choose(PICKS)

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                sizes.append(tuple(args[-1].shape))
            return result

    with Products(), torch.no_grad():
        model(X.float())
    assert sizes == [(6, 15), (15, 6)]


@torch.no_grad()
def test_compiled_nothing_is_compiled_again() -> None:
    """Whatever the number of samples that have each form, none included."""
    model, plain = net(), net()
    choices = mixed(model)
    served = lyc_fx.serve(model, choices, rank=4, most=4)
    served.choose(PICKS)
    fast = torch.compile(model, fullgraph=True)
    same(fast(X), alone(plain, choices, X))
    with torch.compiler.set_stance("fail_on_recompile"):
        for picks in ((None, "c", "c", "a", "b"), (None,) * 5, ("b",) * 5):
            served.choose(picks)
            same(fast(X), alone(plain, choices, X, picks))
        for seed in (7, 8):  # into the free place, and into its own
            other = {**choices, "d": [(adapters(model, "0", rank=4 - seed % 2, seed=seed), 0.3)]}
            served.put("d", other["d"])
            served.choose(("d", "a", None, "b", "d"))
            same(fast(X), alone(plain, other, X, ("d", "a", None, "b", "d")))


@torch.no_grad()
def test_compiled_convolutions_and_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 9, (3, 2), stride=2), nn.GroupNorm(3, 9), nn.ConvTranspose2d(9, 4, 3)).double()
    plain, x = copy.deepcopy(model), torch.randn(5, 6, 7, 8, dtype=torch.float64)
    kinds = {v[0].name: v for v in VARIANTS if len(v[1]) <= 2}

    def each(family: str, module: str, seed: int) -> AdapterSet:
        shape = tuple(model.get_submodule(module).weight.shape)  # type: ignore[union-attr, arg-type]
        adapter = random_for(kinds[family], shape, dtype=torch.float64, seed=seed)
        assert adapter is not None
        return one(adapter, module)

    choices = {
        "a": [(each("locon", "0", 0), 0.7), (each("norm", "1", 0), 0.4)],
        "b": [(each("diag-oft", "0", 1), -0.5), (each("locon", "2", 1), 0.9)],
        "c": [(each("norm", "1", 2), 1.2), (each("lokr", "2", 2), 0.3)],
    }
    served = lyc_fx.serve(model, choices)
    fast = torch.compile(model, fullgraph=True)
    served.choose(PICKS)
    same(fast(x), alone(plain, choices, x))
    with torch.compiler.set_stance("fail_on_recompile"):
        served.choose((None, "a", "a", "a", "c"))
        same(fast(x), alone(plain, choices, x, (None, "a", "a", "a", "c")))


def test_another_form_gets_another_place() -> None:
    model, plain = net(), net()
    choices = {**mixed(model), "d": [(adapters(model, "0", family="loha", seed=5), 0.9)]}
    served = lyc_fx.serve(model, {"a": choices["a"]}, most=4)
    for name in ("b", "c", "d"):
        served.put(name, choices[name])
    served.choose(("d", "c", "b", "a", None))
    same(model(X), alone(plain, choices, X, ("d", "c", "b", "a", None)))
    with pytest.raises(lyc_fx.WrongArgument, match=r"no place for one more set: .*a, b, c, d, of at most 4"):
        served.put("e", choices["a"])
    served.choose([None] * 5)
    served.remove("b")
    served.put("e", choices["a"])
    served.choose(("e", "c", "e", "a", None))
    same(model(X), alone(plain, {**choices, "e": choices["a"]}, X, ("e", "c", "e", "a", None)))


def test_a_batch_twice_over_as_under_guidance() -> None:
    model, plain = net(), net()
    choices = mixed(model)
    served = lyc_fx.serve(model, choices, rank=4)
    served.choose(PICKS, copies=2)
    twice = torch.cat([X, X.flip(0)])
    same(model(twice), torch.cat([alone(plain, choices, X), alone(plain, choices, X.flip(0))]))
    same(model(X), alone(plain, choices, X))
    with pytest.raises(lyc_fx.WrongArgument, match="chosen for 5 or 10 samples"):
        model(torch.cat([X, X, X]))
    with pytest.raises(lyc_fx.WrongArgument, match="copies=0"):
        served.choose(PICKS, copies=0)


def test_mistakes_are_said_and_change_nothing() -> None:
    model, plain = net(), net()
    choices = mixed(model)
    served = lyc_fx.serve(model, choices, rank=4)
    served.choose(PICKS)
    with pytest.raises(lyc_fx.WrongArgument, match=r"'z' is no set here: there are .*a, b, c"):
        served.choose(["a", "z"])
    with pytest.raises(lyc_fx.WrongArgument, match=r"an input of shape \(4, 3, 6\), .* chosen for 5 samples"):
        model(X[:4])
    with pytest.raises(lyc_fx.WrongArgument, match="'b' is in use"):
        served.remove("b")
    with pytest.raises(lyc_fx.BadAdapter, match="rank 5, and there is room for 4"):
        served.put("a", adapters(model, "0", "2", rank=5))
    with pytest.raises(lyc_fx.BadAdapter, match="nowhere"):
        served.put("a", AdapterSet((Entry("nowhere", "weight", adapters(model, "0").entries[0].adapter, ("x",)),), "x"))
    same(model(X), alone(plain, choices, X))
    with pytest.raises(lyc_fx.Unsupported, match="attached already"):
        lyc_fx.serve(model, choices)
    with pytest.raises(lyc_fx.WrongArgument, match="most=1"):
        lyc_fx.serve(net(), choices, most=1)
