"""Against LyCORIS itself: files that it writes, its *forward* as the oracle (never its merge)."""

import contextlib
import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import BadAdapter

lycoris = pytest.importorskip("lycoris")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings
logging.getLogger("LyCORIS").setLevel(logging.ERROR)

STRENGTH = 0.7


class Net(nn.Module):
    """out ≠ in, bias, groups, dilation, stride, a non-square kernel; Linear, and convolutions in 1, 2 and 3 d."""

    def __init__(self, *, groups: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 20)
        self.conv1 = nn.Conv1d(12, 20, 3, stride=2, padding=1)
        self.point = nn.Conv2d(12, 20, 1, stride=2)
        self.conv2 = nn.Conv2d(12, 20, (3, 2), padding=(1, 0), dilation=(2, 1), groups=2 if groups else 1)
        self.conv3 = nn.Conv3d(12, 20, (1, 3, 2), padding=(0, 1, 0))

    def forward(self, x: Tensor, signal: Tensor, image: Tensor, volume: Tensor) -> list[Tensor]:
        return [self.fc(x), self.conv1(signal), self.point(image), self.conv2(image), self.conv3(volume)]


WIDE = {"linear_dim": 10, "conv_dim": 10}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon"},
    "locon tucker": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4, "linear_dim": 2, "conv_dim": 2},
    "lokr both decomposed": {"algo": "lokr", "factor": 10, "linear_dim": 1, "conv_dim": 1, "decompose_both": True},
    "lokr tucker": {"algo": "lokr", "factor": 4, "linear_dim": 2, "conv_dim": 2, "use_tucker": True},
    "lokr full": {"algo": "lokr", "factor": 4, "linear_dim": 10000, "conv_dim": 10000},
    "full": {"algo": "full"},
    "ia3": {"algo": "ia3"},
    "ia3 on input": {"algo": "ia3", "train_on_input": True},
    "glora": {"algo": "glora"},
    "diag-oft": {"algo": "diag-oft"},
    "diag-oft constrained": {"algo": "diag-oft", "constraint": 0.01},
    "diag-oft rescaled": {"algo": "diag-oft", "rescaled": True},
    "boft": {"algo": "boft", **WIDE},
    "boft constrained": {"algo": "boft", **WIDE, "constraint": 0.02},
    "boft rescaled": {"algo": "boft", **WIDE, "rescaled": True},
    "tlora": {"algo": "tlora"},
    "dora locon": {"algo": "locon", "dora_wd": True},
    "dora locon on input": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "dora loha tucker": {"algo": "loha", "dora_wd": True, "use_tucker": True},
    "dora lokr": {"algo": "lokr", "dora_wd": True, "factor": 4, "linear_dim": 2, "conv_dim": 2},
    "lokr unbalanced": {"algo": "lokr", "factor": 4, "linear_dim": 2, "conv_dim": 2, "unbalanced_factorization": True},
}


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (torch.randn(3, 7, 12), torch.randn(2, 12, 9), torch.randn(2, 12, 9, 8), torch.randn(2, 12, 3, 5, 6))


@cache
def captured(groups: bool) -> tuple[nn.Module, GraphModule]:
    """A model and its program; nothing changes them."""
    torch.manual_seed(0)
    model = Net(groups=groups).eval()
    return model, lyc_fx.capture(model, inputs())


def written_by_lycoris(model: nn.Module, path: Path, options: dict[str, Any]) -> list[Tensor]:
    """Let LyCORIS adapt a copy of the model and save the adapter; its forward at STRENGTH."""
    adapted = copy.deepcopy(model)
    targets = ["fc", "point"] if options["algo"] == "tlora" else [".*"]  # the reference's own k×k is broken
    lycoris.LycorisNetwork.apply_preset({"target_name": targets, "target_module": []})
    network = lycoris.create_lycoris(
        adapted, STRENGTH, **{"linear_dim": 4, "linear_alpha": 2.5, "conv_dim": 3, "conv_alpha": 2.0, **options}
    )
    network.apply_to()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("alpha"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        wanted = adapted(*inputs())
    network.save_weights(str(path), torch.float32, {})
    assert len(network.loras) == (5 if targets == [".*"] else 2)
    return wanted


@pytest.mark.parametrize("name", ALGORITHMS)
def test_files_written_by_lycoris_match_its_forward(name: str, tmp_path: Path) -> None:
    model, program = captured(ALGORITHMS[name]["algo"] != "glora")  # GLoRA of the reference has no groups
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "adapter.safetensors"
    wanted = written_by_lycoris(model, path, ALGORITHMS[name])
    adapters = lyc_fx.load(path)
    assert not adapters.unread
    base = model(*inputs())
    live = copy.deepcopy(model)
    report = lyc_fx.merge(live, adapters, STRENGTH, convention="lycoris")
    changed = {row.target.partition(".")[0] for row in report.applied if row.target.endswith("weight")}
    spliced = lyc_fx.splice(program, adapters, STRENGTH, convention="lycoris")
    folded, lowered = lyc_fx.fold(spliced, check=True), lyc_fx.lower(spliced, check=True)
    for outputs in (live(*inputs()), folded(*inputs()), lowered(*inputs())):
        for layer, ours, theirs, plain in zip(model._modules, outputs, wanted, base, strict=True):
            error = (ours - theirs).abs().max() / theirs.abs().max()
            assert error <= 1e-5, (layer, error)
            assert ((theirs - plain).abs().max() > 1e-2) == (layer in changed)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert changed == ({"fc", "point"} if name == "tlora" else set(model._modules))


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_where_the_references_merge_is_wrong_its_forward_rules(name: str, tmp_path: Path) -> None:
    """LyCORIS 4.1.3 merges LoHa and LoKr with alpha/rank applied twice; the difference is what we do not copy."""
    torch.manual_seed(0)
    model = Net().eval()
    path = tmp_path / "adapter.safetensors"
    written_by_lycoris(model, path, ALGORITHMS[name])
    theirs = copy.deepcopy(model)
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), theirs)
    network.merge_to(1.0)
    ours = copy.deepcopy(model)
    report = lyc_fx.merge(ours, lyc_fx.load(path))
    scale = next(row.scale for row in report.applied if row.target == "fc.weight")
    assert scale != 1
    change = ours.fc.weight - model.fc.weight
    torch.testing.assert_close(theirs.fc.weight - model.fc.weight, change * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lokr tucker", "lokr unbalanced", "dora locon on input", "ia3", "dylora"])
def test_files_that_lycoris_cannot_load_again(name: str, tmp_path: Path) -> None:
    """It raises, or leaves modules out; here every module is read and fits."""
    torch.manual_seed(0)
    model = Net(groups=False).eval()
    path = tmp_path / "adapter.safetensors"
    options = ALGORITHMS.get(name, {"algo": "dylora", "block_size": 1, "conv_dim": 4})
    written_by_lycoris(model, path, options)
    theirs = 0
    with contextlib.suppress(Exception):
        theirs = len(lycoris.create_lycoris_from_weights(1.0, str(path), copy.deepcopy(model))[0].loras)
    assert theirs < 5
    report = lyc_fx.merge(copy.deepcopy(model), lyc_fx.load(path))
    assert len({row.target for row in report.applied}) == 5


def test_tlora_on_a_kernel_is_refused() -> None:
    tensors = {"conv1.q_layer.weight": torch.randn(2, 12, 1), "conv1.p_layer.weight": torch.randn(20, 2, 1)}
    adapters = lyc_fx.load(tensors | {"conv1.lambda_layer": torch.ones(1, 2)})
    with pytest.raises(BadAdapter, match="T-LoRA of a k×k convolution has no defined effect"):
        lyc_fx.merge(Net(), adapters)
