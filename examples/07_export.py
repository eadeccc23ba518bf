"""Export a model once, and let it take any adapter later: another algorithm, another rank, another strength."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import lyc_fx

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).eval().requires_grad_(False)
x = torch.randn(3, 16)


def lora(rank: int) -> lyc_fx.AdapterSet:
    """For both layers."""
    factors = {}
    for name, (out, inner) in {"0": (32, 16), "2": (4, 32)}.items():
        factors[f"lycoris_{name}.lora_up.weight"] = torch.randn(out, rank) / 4
        factors[f"lycoris_{name}.lora_down.weight"] = torch.randn(rank, inner) / 4
        factors[f"lycoris_{name}.alpha"] = torch.tensor(2.0)
    return lyc_fx.load(factors)


def loha() -> lyc_fx.AdapterSet:
    """For the first layer."""
    shapes = {"w1_a": (32, 2), "w1_b": (2, 16), "w2_a": (32, 2), "w2_b": (2, 16)}
    return lyc_fx.load({f"lycoris_0.hada_{name}": torch.randn(shape) / 2 for name, shape in shapes.items()})


program = lyc_fx.capture(model, (x,), dynamic_shapes={"input": "batch<=64 _"})
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "model.pt2")
    lyc_fx.export(lyc_fx.slots(lyc_fx.splice(program, lora(4), rank=4)), file)
    lyc_fx.pack(loha(), file, Path(folder, "loha.safetensors"), strength=0.5)  # or: lyc-fx pack … --for model.pt2

    artefact = lyc_fx.bind(file)
    print(f"without an adapter: differs by {(artefact(x) - model(x)).abs().max():.1e}")
    for name, adapters, strength in (("LoRA of rank 9", lora(9), 0.8), ("LoHa", loha(), -0.3)):
        artefact.set(adapters, strength)
        with lyc_fx.live(model) as live:
            live.set(adapters, strength)
            print(f"{name}: differs from the merged model by {(artefact(x) - model(x)).abs().max():.1e}")

    # Several inside, and each sample of a batch has strengths of its own.
    styles = Path(folder, "styles.pt2")
    lyc_fx.export(lyc_fx.styles(lyc_fx.splice(program, [lora(4), loha()])), styles)
    artefact = lyc_fx.bind(styles)
    artefact.strengths = [[0.0, 0.0], [0.8, 0.0], [0.3, -0.5]]
    moved = (artefact(x) - model(x)).abs().amax(1)
    print(f"samples moved by up to {', '.join(f'{each:.3f}' for each in moved)}")
