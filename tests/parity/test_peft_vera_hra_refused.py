"""VeRA and HRA that cannot be read, do not fit, or cannot be written; and fused projections."""

from pathlib import Path

import pytest
import torch
from nets import many
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.vera import VeRA
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.formats import writer

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from odd_layers import Odd  # noqa: E402
from peft_models import made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


def test_a_file_without_projections_says_what_to_do(tmp_path: Path) -> None:
    train(made(Odd), "VeraConfig", tmp_path, r=3, target_modules=["fc", "bare", "wide"], save_projection=False)
    with pytest.raises(
        BadAdapter, match=r"fc: the file has no vera_A and no vera_B, .* save_projection=False.*merge_and_unload"
    ):
        lyc_fx.load(tmp_path)


def test_hra_needs_the_configuration(tmp_path: Path) -> None:
    train(made(Odd), "HRAConfig", tmp_path, r=4, target_modules=["fc"])
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BadAdapter, match=r"fc: PEFT keeps what else there is to know in adapter_config\.json"):
        lyc_fx.load(tmp_path)


def test_vera_that_does_not_fit_is_refused() -> None:
    def vera(**other: Tensor) -> VeRA:
        factors = {"a": (2, 9), "b": (12, 2), "lambda_b": (11,), "lambda_d": (2,)}
        return VeRA(**{name: torch.ones(shape) for name, shape in factors.items()} | other)

    assert targets(lyc_fx.merge(made(Odd), many(fc=vera()))) == ["fc.weight"]
    for factor, text in {
        "a": (torch.ones(2, 6), r"vera_A is \(2, 6\), the weight asks for \(2, 7\)"),
        "b": (torch.ones(10, 2), r"vera_B is \(10, 2\), the weight asks for \(11, 2\)"),
        "lambda_b": (torch.ones(10), r"vera_B is \(10, 2\), the weight asks for \(11, 2\)"),
        "lambda_d": (torch.ones(3), r"vera_A is \(2, 7\), the weight asks for \(3, 7\)"),
    }.items():
        with pytest.raises(BadAdapter, match=text[1]):
            lyc_fx.merge(made(Odd), many(fc=vera(**{factor: text[0]})))


def test_hra_that_does_not_fit_is_refused() -> None:
    columns = torch.ones(7, 2)
    for u, orthonormal, text in (
        (torch.ones(6, 2), 0, r"hra_u is \(6, 2\), the weight asks for \(7, 2\)"),
        (columns * torch.tensor([1.0, 0.0]), 0, r"hra_u \(7, 2\) has columns without a direction"),
        (torch.randn(7, 8), 1, r"hra_u \(7, 8\) has columns without a direction"),
    ):
        with pytest.raises(BadAdapter, match=text):
            lyc_fx.merge(made(Odd), many(fc=HRA(u=u, orthonormal=orthonormal)))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(6, 18)
        self.o_proj = nn.Linear(6, 6)


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            self.add_module(f"{name}_proj", nn.Linear(6, 6))


def test_fused_projections_and_separate_ones() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 8), torch.randn(20, 3)
    for whole in (
        VeRA(a=a, b=b, lambda_b=torch.randn(18), lambda_d=torch.randn(3)),
        HRA(u=torch.randn(6, 3)),
        HRA(u=torch.randn(6, 3), orthonormal=1),
    ):
        fused, apart = Fused(), Apart()
        rows = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"]).detach()
        fused.qkv_proj.weight.data = rows.clone()
        lyc_fx.merge(fused, many(qkv_proj=whole), 0.7)
        lyc_fx.merge(apart, many(qkv_proj=whole), 0.7)
        together = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"])
        assert torch.equal(together, fused.qkv_proj.weight) and not torch.equal(together, rows)
    parts = {f"{n}_proj": VeRA(a=a, b=b, lambda_b=torch.randn(6), lambda_d=torch.randn(3)) for n in "qkv"}
    fused, apart = Fused(), Apart()
    fused.qkv_proj.weight.data = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"]).detach()
    lyc_fx.merge(fused, many(**parts))
    lyc_fx.merge(apart, many(**parts))
    together = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"])
    assert torch.equal(together, fused.qkv_proj.weight)
    conversion = lyc_fx.convert(many(**parts), "lycoris", like=Fused())
    assert [each.how for each in conversion.modules] == [("fused",)]


def test_what_peft_cannot_hold() -> None:
    def vera(seed: int) -> VeRA:
        made_ = {"a": (2, 11), "b": (13, 2), "lambda_b": (11,), "lambda_d": (2,)}
        torch.manual_seed(seed)
        return VeRA(**{name: torch.randn(shape) for name, shape in made_.items()})

    with pytest.raises(Unsupported, match=r"one vera_A for all modules, here there are several: .* to LoRA"):
        writer("peft").write(many(fc=vera(0), bare=vera(1)))
    with pytest.raises(Unsupported, match=r"one rank for all modules, here there are \[2, 3\]"):
        writer("peft").write(many(fc=HRA(u=torch.ones(7, 2)), bare=HRA(u=torch.ones(11, 3))))
