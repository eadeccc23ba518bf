"""What files leave open: PEFT's keys without a configuration, pruned modules, parameters by other names."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter
from lyc_fx.formats import AssumedScale

UP, DOWN = torch.linspace(-1, 1, 16).reshape(8, 2), torch.linspace(-2, 1, 12).reshape(2, 6)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(6, 8)})])}).double()


def keys(prefix: str, **more: Tensor) -> dict[str, Tensor]:
    name = f"{prefix}blocks.0.to_q"
    return {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP, **{f"{name}.{k}": v for k, v in more.items()}}


def scale(tensors: dict[str, Tensor] | Path, **options: object) -> float:
    """By how much the product of the factors was multiplied."""
    live, before = model(), model()
    lyc_fx.merge(live, lyc_fx.load(tensors, **options))  # type: ignore[arg-type]
    change = (live.get_parameter("blocks.0.to_q.weight") - before.get_parameter("blocks.0.to_q.weight")).detach()
    product = UP.double() @ DOWN.double()
    found = float((change * product).sum() / product.square().sum())
    torch.testing.assert_close(change, found * product, rtol=1e-6, atol=1e-9)
    return found


PREFIXES = ["base_model.model.", "base_model.model.transformer.", "base_model.model.model.diffusion_model."]
ALL = [*PREFIXES, "transformer.base_model.model.", "unet.unet.", "pipe.dit.", "_orig_mod.", "module._orig_mod.", ""]


@pytest.mark.parametrize("prefix", ALL)
def test_prefixes_in_any_order(prefix: str) -> None:
    assert scale(keys(prefix, alpha=torch.tensor(3.0))) == pytest.approx(1.5)
    assert scale(keys(prefix), alpha=3.0) == pytest.approx(1.5)


def test_keys_of_peft_without_a_configuration_warn_of_their_scale(tmp_path: Path) -> None:
    with pytest.warns(AssumedScale, match=r"its 1 adapter: it is taken to be 1, .*--config, --alpha"):
        assert scale(keys(PREFIXES[0])) == pytest.approx(1)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5}
    assert scale(keys(PREFIXES[0]), config=config) == pytest.approx(2.5)
    (tmp_path / "mine.json").write_text(json.dumps(config))
    save_file(keys(PREFIXES[0]), tmp_path / "style.safetensors")
    assert scale(tmp_path / "style.safetensors", config=tmp_path / "mine.json") == pytest.approx(2.5)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 7}))
    assert scale(tmp_path / "style.safetensors", alpha=9.0) == pytest.approx(3.5)  # what the files say counts first


@pytest.mark.parametrize("name", ["adalora", "whole"])
def test_a_module_that_adalora_pruned_is_left_as_it_is(name: str) -> None:
    stem = "base_model.model.blocks.0.to_q"
    empty = {"lora_A": torch.zeros(0, 6), "lora_B": torch.zeros(8, 0), "lora_E": torch.zeros(0, 1)}
    config = {"peft_type": "ADALORA", "r": 8, "init_r": 4, "lora_alpha": 3}
    live = model()
    tensors = {f"{stem}.{k}": v for k, v in empty.items()}
    if name == "whole":  # beside one that was not
        tensors |= {"base_model.model.head.lora_A": DOWN, "base_model.model.head.lora_B": UP}
        tensors |= {"base_model.model.head.lora_E": torch.tensor([[2.0], [3.0]])}
        live = nn.ModuleDict({"blocks": live["blocks"], "head": nn.Linear(6, 8).double()})
    before = copy.deepcopy(live)
    with pytest.warns(NothingChanged) if name == "adalora" else nullcontext():
        lyc_fx.merge(live, lyc_fx.load(tensors, config=config))
    assert torch.equal(live["blocks"][0]["to_q"].weight, before["blocks"][0]["to_q"].weight)
    with pytest.raises(BadAdapter, match="lora_E is empty, and lora_A and lora_B are not of rank 0"):
        lyc_fx.load({**tensors, f"{stem}.lora_A": DOWN}, config=config)


class Wan(nn.Module):
    """The names of the publication, or those of diffusers."""

    def __init__(self, diffusers: bool) -> None:
        super().__init__()
        own = ("attn1", "attn2", "to_q") if diffusers else ("self_attn", "cross_attn", "q")
        table = "scale_shift_table" if diffusers else "modulation"
        block = nn.ModuleDict(
            {name: nn.ModuleDict({own[2]: nn.Linear(4, 4), "norm_q": nn.RMSNorm(4)}) for name in own[:2]}
        )
        block.register_parameter(table, nn.Parameter(torch.zeros(1, 6, 4)))
        self.blocks = nn.ModuleList([block])
        if diffusers:
            self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, 4))
        else:
            self.head = nn.Module()
            self.head.modulation = nn.Parameter(torch.zeros(1, 2, 4))


@pytest.mark.parametrize("diffusers", [False, True])
def test_modulation_and_norms_of_wan(diffusers: bool) -> None:
    tensors = {
        "diffusion_model.blocks.0.diff_m": torch.full((1, 6, 4), 2.0),
        "diffusion_model.head.diff_m": torch.full((1, 2, 4), 3.0),
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.full((4,), 5.0),
        "diffusion_model.blocks.0.cross_attn.norm_q.diff": torch.full((4,), 7.0),
    }
    live = Wan(diffusers)
    report = lyc_fx.merge(live, tensors, 0.5)
    own = dict(live.named_parameters())
    wanted = ("blocks.0.attn1.norm_q.weight", "blocks.0.attn2.norm_q.weight", "blocks.0.scale_shift_table")
    names = (*wanted, "scale_shift_table")
    if not diffusers:
        names = tuple(n.replace("attn1", "self_attn").replace("attn2", "cross_attn") for n in wanted[:2])
        names = (*names, "blocks.0.modulation", "head.modulation")
    assert sorted(row.target for row in report.applied) == sorted(names)
    for name, value in zip(names, (1 + 2.5, 1 + 3.5, 1.0, 1.5), strict=True):
        assert torch.equal(own[name], torch.full_like(own[name], value)), name


def test_a_parameter_called_alpha_is_none_of_an_adapter() -> None:
    """Of an activation that was trained as a whole, beside a module that has an alpha of its own."""
    net = model()
    net["snake"] = nn.Module()
    net["snake"].alpha = nn.Parameter(torch.zeros(3).double())
    value = torch.tensor([0.5, -1.0, 2.0])
    tensors = {**keys("base_model.model.", alpha=torch.tensor(5.0)), "base_model.model.snake.alpha": value}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "modules_to_save": ["snake"]}
    before = net["blocks"][0]["to_q"].weight.detach().clone()
    lyc_fx.merge(net, lyc_fx.load(tensors, config=config))
    assert torch.equal(net["snake"].alpha, value.double())
    change = (net["blocks"][0]["to_q"].weight - before).detach()
    torch.testing.assert_close(change, 2.5 * UP.double() @ DOWN.double())
