"""Weights under weight norm in checkpoints: the effective weight is merged, and stored as such a pair again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import lyc_fx
from lyc_fx.errors import BadAdapter

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
STRENGTH = 0.7
NORMS: dict[str, Callable[..., nn.Module]] = {"hook": weight_norm, "parametrization": parametrizations.weight_norm}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 9),
    "conv": lambda: nn.Conv1d(6, 9, 3),
}


def model(norm: str, layer: str = "linear", dim: int | None = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"out": NORMS[norm](LAYERS[layer]().to(dtype), dim=dim), "plain": nn.Linear(9, 7).to(dtype)})


def weight_of(state: dict[str, Tensor], norm: str, dim: int | None = 0) -> Tensor:
    """By the formula, in float64."""
    names = {"hook": ("out.weight_v", "out.weight_g")}.get(
        norm, ("out.parametrizations.weight.original1", "out.parametrizations.weight.original0")
    )
    v, g = (state[name].double() for name in names)
    over = [d for d in range(v.dim()) if d != dim] if dim is not None else list(range(v.dim()))
    return g * v / v.square().sum(over, keepdim=True).sqrt()


def factors(layer: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    kernel = (3,) if layer == "conv" else ()
    up = torch.randn((9, 2, *(1 for _ in kernel)), generator=rng, dtype=torch.float64)
    down = torch.randn((2, 6, *kernel), generator=rng, dtype=torch.float64)
    return {
        "lycoris_out.lora_up.weight": up,
        "lycoris_out.lora_down.weight": down,
        "lycoris_out.alpha": torch.tensor(3.0),
    }


def change(layer: str) -> Tensor:
    up, down, _ = factors(layer).values()
    return STRENGTH * 1.5 * torch.einsum("or,ri...->oi...", up.flatten(1), down)


def saved(module: nn.Module, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_effective_weight_is_merged(
    norm: str, layer: str, dim: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    net = model(norm, layer, dim, dtype)
    base, before = saved(net, tmp_path / "base.safetensors"), dict(net.state_dict())
    before = {name: value.clone() for name, value in before.items()}
    report = lyc_fx.fold_checkpoint(base, lyc_fx.load(factors(layer)), tmp_path / "out.safetensors", STRENGTH)
    out = load_file(tmp_path / "out.safetensors")
    tolerance = 1e-12 if dtype == torch.float64 else 2**-6
    found, wanted = weight_of(out, norm, dim), weight_of(before, norm, dim) + change(layer)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert {name: value.dtype for name, value in out.items()} == {name: value.dtype for name, value in before.items()}
    assert all(
        torch.equal(out[name], value) for name, value in before.items() if "weight_" not in name and "orig" not in name
    )
    assert [row.target for row in report.applied] == ["out.weight"] and report.changes["out.weight"] > 0
    assert report.untouched == ("plain.weight",)
    lyc_fx.merge(net, lyc_fx.load(factors(layer)), STRENGTH)
    for name, value in net.state_dict().items():  # to the bit but for a norm down columns, which depends on threads
        torch.testing.assert_close(
            out[name], value, rtol=0 if dim == 0 else tolerance, atol=0 if dim == 0 else tolerance
        )


@pytest.mark.parametrize("norm", NORMS)
def test_shards_another_dtype_and_random_rounding(norm: str, tmp_path: Path) -> None:
    net, folder = model(norm, dtype=torch.float32), tmp_path / "model"
    folder.mkdir()
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    halves = [dict(part) for part in (list(state.items())[::2], list(state.items())[1::2])]
    assert sum(any("_g" in n or "original0" in n for n in half) for half in halves) == 1
    for number, half in enumerate(halves):
        save_file(half, folder / f"model-{number}.safetensors")
    index = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    wanted = weight_of(state, norm) + change("linear")
    for options, tolerance in (
        ({}, 1e-6),
        ({"dtype": torch.bfloat16}, 2**-6),
        ({"dtype": torch.bfloat16, "rounding": "stochastic", "seed": 5}, 2**-5),
    ):
        lyc_fx.fold_checkpoint(
            folder, lyc_fx.load(factors("linear")), tmp_path / "out", STRENGTH, force=True, **options
        )  # type: ignore[arg-type]
        out = {n: v for file in (tmp_path / "out").glob("*.safetensors") for n, v in load_file(file).items()}
        assert {value.dtype for value in out.values()} == {options.get("dtype", torch.float32)}
        torch.testing.assert_close(weight_of(out, norm), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_that_becomes_zero(norm: str, tmp_path: Path) -> None:
    """Any direction will do, but none of zeros, which torch divides by."""
    net = model(norm)
    value = torch.randn(9, 6, dtype=torch.float64)
    value[4] = 0
    adapters = lyc_fx.load({"out.set_weight": value})
    lyc_fx.fold_checkpoint(saved(net, tmp_path / "base.safetensors"), adapters, tmp_path / "out.safetensors")
    lyc_fx.merge(net, adapters)
    for state in (load_file(tmp_path / "out.safetensors"), dict(net.state_dict())):
        torch.testing.assert_close(weight_of(state, norm), value, rtol=1e-12, atol=1e-12)


def test_adapters_of_a_weight_and_of_its_parts(tmp_path: Path) -> None:
    net = model("hook")
    base = saved(net, tmp_path / "base.safetensors")
    magnitude = lyc_fx.load({"out.weight_g.diff": torch.ones(9, 1)})
    lyc_fx.fold_checkpoint(base, magnitude, tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["out.weight_g"], net["out"].weight_g + 1)
    both = [magnitude, lyc_fx.load(factors("linear"))]
    with pytest.raises(BadAdapter, match=r"out.weight is computed from out.weight_g, and there are adapters of both"):
        lyc_fx.fold_checkpoint(base, both, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_a_pair_that_is_no_weight_norm(tmp_path: Path) -> None:
    """Of a parametrization by two factors."""
    pair = {f"out.parametrizations.weight.original{n}": torch.randn(s) for n, s in ((0, (9, 2)), (1, (2, 6)))}
    save_file(pair, tmp_path / "base.safetensors")
    with pytest.raises(BadAdapter, match=r"it is computed from out\.parametrizations\.weight\.original0"):
        lyc_fx.fold_checkpoint(
            tmp_path / "base.safetensors", lyc_fx.load(factors("linear")), tmp_path / "out.safetensors"
        )


def test_other_parameters_of_such_names(tmp_path: Path) -> None:
    """RWKV mixes v and g of two tokens, each by a vector."""
    names = ("mix.time_v", "mix.time_g", "mix.lightweight_v", "mix.lightweight_g")
    save_file({name: torch.zeros(1, 1, 6) for name in names}, tmp_path / "base.safetensors")
    found = lyc_fx.coverage(lyc_fx.load(factors("linear")), tmp_path / "base.safetensors")
    assert {weight.name for weight in found.weights} == set(names)


@pytest.mark.parametrize("norm", NORMS)
def test_coverage_and_convert_know_the_weight(norm: str, tmp_path: Path) -> None:
    net = model(norm)
    for like in (net, saved(net, tmp_path / "base.safetensors")):
        found = lyc_fx.coverage(lyc_fx.load(factors("linear")), like)
        assert found.complete and {target for key in found.keys for target in key.targets} == {"out.weight"}
        assert [made.module for made in lyc_fx.convert(lyc_fx.load(factors("linear")), "peft", like=like).modules] == [
            "out"
        ]
