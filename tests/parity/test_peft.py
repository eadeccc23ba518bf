"""Against PEFT's forward on Linear and Conv2d: LoRA, DoRA, LoHa, LoKr, with its factors under LyCORIS keys."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lyc_fx

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings

LORA = {"lora_A.default.weight": "lora_down.weight", "lora_B.default.weight": "lora_up.weight"}
DORA = LORA | {"lora_magnitude_vector.default.weight": "dora_scale"}
HADA = {f"hada_{name}.default": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
KRON = {f"lokr_{name}.default": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2_a", "w2_b", "t2")}
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 2.5}, LORA),
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 2.5, "use_dora": True}, DORA),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 2.5}, HADA),
    "loha tucker": ("LoHaConfig", {"r": 4, "alpha": 2.5, "use_effective_conv2d": True}, HADA),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 1.5}, KRON),
    "lokr both decomposed": ("LoKrConfig", {"r": 1, "alpha": 1.5, "decompose_both": True}, KRON),
    "lokr tucker": ("LoKrConfig", {"r": 2, "alpha": 1.5, "use_effective_conv2d": True}, KRON),
}


class Net(nn.Module):
    """A Linear and a strided convolution, out ≠ in, with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 40)
        self.conv = nn.Conv2d(24, 40, 3, stride=2, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), self.conv(image)


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_trained_by_peft_have_peft_s_effect(name: str) -> None:
    torch.manual_seed(0)
    config, options, names = CONFIGS[name]
    model, inputs = Net().eval(), (torch.randn(3, 24), torch.randn(2, 24, 7, 6))
    made = getattr(peft, config)(target_modules=["fc", "conv"], **options)
    adapted = peft.get_peft_model(copy.deepcopy(model), made).eval()
    alpha = torch.tensor(options.get("alpha", options.get("lora_alpha")))
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn_like(parameter) * 0.2
            parameter.copy_(parameter.abs() + noise.abs() if "magnitude" in key else noise)
            layer, _, factor = key.removeprefix("base_model.model.").partition(".")
            # PEFT keeps the magnitude of a convolution's output along the second dimension.
            turned = "magnitude" in key and parameter.dim() > 1
            tensors[f"{layer}.{names[factor]}"] = (parameter.transpose(0, 1) if turned else parameter).clone()
            tensors[f"{layer}.alpha"] = alpha
        wanted = adapted(*inputs)
    live = copy.deepcopy(model)
    report = lyc_fx.merge(live, lyc_fx.load(tensors))
    assert {row.target for row in report.applied} == {"fc.weight", "conv.weight"}
    for ours, theirs, plain in zip(live(*inputs), wanted, model(*inputs), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert (theirs - plain).abs().max() > 1e-2
