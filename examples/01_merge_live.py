"""Merge an adapter into a running model, in place, and take it out again."""

import torch
from torch import nn

import lyc_fx

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 10)).eval()
image = torch.randn(1, 3, 8, 8)

# What `lyc_fx.load("adapter.safetensors")` reads from a file, here as a dict: a LoHa on the convolution (module "0")
# and a LoCon on the linear layer (module "3").
adapters = lyc_fx.load(
    {
        "lycoris_0.hada_w1_a": torch.randn(16, 2) * 0.3,
        "lycoris_0.hada_w1_b": torch.randn(2, 3 * 3 * 3) * 0.3,
        "lycoris_0.hada_w2_a": torch.randn(16, 2) * 0.3,
        "lycoris_0.hada_w2_b": torch.randn(2, 3 * 3 * 3) * 0.3,
        "lycoris_0.alpha": torch.tensor(1.0),
        "lycoris_3.lora_up.weight": torch.randn(10, 4) * 0.3,
        "lycoris_3.lora_down.weight": torch.randn(4, 16 * 8 * 8) * 0.3,
        "lycoris_3.alpha": torch.tensor(4.0),
    }
)

with torch.no_grad():
    before = model(image)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    report = lyc_fx.merge(model, adapters, strength=0.8)
    print(report)
    print(f"the output moved by up to {(model(image) - before).abs().max():.3f}")

    # Subtracting would leave rounding errors behind; the weights that were kept are exact.
    model.load_state_dict(base)
    print(f"restored, to the bit: {torch.equal(model(image), before)}")
