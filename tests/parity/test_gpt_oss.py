"""Against PEFT's forward: GPT-OSS, whose experts are `(experts, in, out)` with in = out."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lyc_fx
from lyc_fx.errors import BadAdapter

pytest.importorskip("peft")
hf = pytest.importorskip("transformers", "5")
from transformers_zoo import IDS, Model, text, trained  # noqa: E402  # it imports the latter

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own warnings

GPT_OSS = Model(
    lambda: hf.GptOssForCausalLM(
        text(hf.GptOssConfig, head_dim=8, intermediate_size=16, num_local_experts=3, num_experts_per_tok=2)
    ),
    {"input_ids": IDS},
    ("", ""),
)


@pytest.mark.parametrize(
    "listed", [["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], ["mlp.experts.down_proj"]], ids=["both", "down"]
)
def test_square_experts(listed: list[str], tmp_path: Path) -> None:
    model = GPT_OSS.build()
    down = model.model.layers[0].mlp.experts.down_proj
    assert down.shape[1] == down.shape[2]
    theirs = trained(model, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=listed)
    model.save_pretrained(tmp_path / "base")
    wanted, before = GPT_OSS.logits(theirs), GPT_OSS.logits(model)
    lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    report = lyc_fx.merge(model, tmp_path / "adapter")
    assert sum("experts" in row.target for row in report.applied) == len(model.model.layers) * len(listed)
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64, experts_implementation="eager").eval()
    for each in (model, folded):
        torch.testing.assert_close(GPT_OSS.logits(each), wanted, rtol=1e-9, atol=1e-9)
    assert (wanted - before).abs().max() > 1e-3


class Square(nn.Module):
    """Experts with in = out, `(experts, in, out)` or `(experts, out, in)`."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.gate_up_proj = nn.Parameter(torch.randn(3, 5, 10) if turned else torch.randn(3, 10, 5))
        self.down_proj = nn.Parameter(torch.randn(3, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = (w if self.turned else w.mT for w in (self.gate_up_proj, self.down_proj))
        gate, up = torch.einsum("eio,bi->ebo", up, x).chunk(2, -1)
        return torch.einsum("eio,ebi->bo", down, torch.tanh(gate) * up)


def adapters_of_down() -> tuple[lyc_fx.AdapterSet, torch.Tensor]:
    torch.manual_seed(4)
    a, b = torch.randn(6, 5), torch.randn(5, 6)
    tensors = {"base_model.model.experts.lora_A.weight": a, "base_model.model.experts.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_parameters": ["experts.down_proj"]}
    change = 1.5 * torch.einsum("ore,eri->eio", b.reshape(5, 2, 3).double(), a.reshape(3, 2, 5).double())
    return lyc_fx.load(tensors, config=config), change


def test_square_experts_in_a_graph() -> None:
    """The parameter beside it shows that it is turned."""
    adapters, change = adapters_of_down()
    program = lyc_fx.splice(lyc_fx.capture(Wrapped(True).double(), (torch.randn(4, 5).double(),)), adapters, 0.7)
    x = torch.randn(4, 5).double()
    by_hand = Wrapped(True).double()
    with torch.no_grad():
        by_hand.experts.down_proj += 0.7 * change
    torch.testing.assert_close(program(x), by_hand(x))
    torch.testing.assert_close(lyc_fx.fold(program)(x), by_hand(x))


class Wrapped(nn.Module):
    def __init__(self, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = Square(turned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x)


def test_square_experts_that_may_be_either_are_refused() -> None:
    """Of `(experts, out, in)` PEFT's versions mean different things."""
    adapters, _ = adapters_of_down()
    with pytest.raises(BadAdapter, match=r"\(experts, out, in\) or \(experts, in, out\) cannot be told"):
        lyc_fx.merge(Wrapped(False), adapters)
