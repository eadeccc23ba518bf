"""The graph road: capture a model, splice an adapter in, look at it, fold it, compile it, save it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import nn

import lyc_fx

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).eval()
x = torch.randn(3, 16)
factors = {"lora_up.weight": torch.randn(32, 2), "lora_down.weight": torch.randn(2, 16), "alpha": torch.tensor(1.0)}
adapters = lyc_fx.load({f"lycoris_0.{name}": factor for name, factor in factors.items()})

captured = lyc_fx.capture(model, (x,), dynamic_shapes={"input": "batch _"})
spliced = lyc_fx.splice(captured, adapters, strength=0.8)
lowered = lyc_fx.lower(spliced)
folded = lyc_fx.fold(spliced)
for name, program in {"captured": captured, "spliced": spliced, "lowered": lowered, "folded": folded}.items():
    print(f"--- {name}\n{lyc_fx.show(program)}")

with torch.no_grad(), TemporaryDirectory() as folder:
    larger = torch.randn(5, 16)
    wanted = spliced(larger)
    compiled = torch.compile(folded, fullgraph=True)
    print(f"compiled: differs by {(compiled(larger) - wanted).abs().max():.1e}")

    program, weights = Path(folder, "model.pt2"), Path(folder, "model.safetensors")
    lyc_fx.export(folded, program)
    lyc_fx.export(folded, weights)
    again = torch.export.load(program).module()
    print(f"loaded from .pt2: differs by {(again(larger) - wanted).abs().max():.1e}")
    model.load_state_dict(load_file(weights))
    print(f"the model with the saved weights: differs by {(model(larger) - wanted).abs().max():.1e}")
