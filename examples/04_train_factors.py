"""Train an adapter's factors in the spliced graph, with the model's own weights frozen."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

import lyc_fx

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
x = torch.randn(256, 8)
y = x[:, :1] * x[:, 1:2]

# A fresh LoCon has random `down` and zero `up`: at first it changes nothing.
fresh = {}
for module, (out, inner) in {"0": (32, 8), "2": (1, 32)}.items():
    fresh[f"lycoris_{module}.lora_up.weight"] = torch.zeros(out, 4)
    fresh[f"lycoris_{module}.lora_down.weight"] = torch.randn(4, inner) / inner**0.5
    fresh[f"lycoris_{module}.alpha"] = torch.tensor(4.0)

program = lyc_fx.splice(lyc_fx.capture(model, (x,), dynamic_shapes={"input": "batch _"}), lyc_fx.load(fresh))
factors = {name: p for name, p in program.named_parameters() if name.startswith("lyc_fx.")}
frozen = [p for name, p in program.named_parameters() if name not in factors]
for parameter in frozen:
    parameter.requires_grad_(False)
base = [parameter.clone() for parameter in frozen]
print(f"training {len(factors)} factors: {', '.join(factors)}")

optimizer = torch.optim.AdamW(factors.values(), lr=0.02)
losses = []
for _ in range(60):
    optimizer.zero_grad()
    loss = mse_loss(program(x), y)
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
print(f"base weights unchanged: {all(torch.equal(a, b) for a, b in zip(base, frozen, strict=True))}")

with torch.no_grad():
    folded = lyc_fx.fold(program)
    print(f"folded after training: differs by {(folded(x) - program(x)).abs().max():.1e}")
