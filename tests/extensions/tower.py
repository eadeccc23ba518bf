"""Run where the plug-in of `examples/` is installed: every road, against the closed formula in float64.

Arguments: a folder to work in.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.conversion import convert
from lyc_fx.formats import writer

assert "lyc_fx_example" not in sys.modules
FOLDER = Path(sys.argv[1])
STRENGTH, ALPHA, RANK = 0.7, 6.0, 3


class Block(nn.Module):
    """A feedforward layer with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.widen(x)
        return x + self.narrow(h * torch.sigmoid(h))


class Tower(nn.Module):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.tower:
            x = block(x)
        return x


torch.manual_seed(0)
MODEL, X = Tower().double(), torch.randn(4, 6, dtype=torch.float64)
FACTORS, CHANGES = {}, {}
for block in range(2):
    for there, here in (("up", "widen"), ("down", "narrow")):
        weight = f"tower.{block}.{here}.weight"
        out, inner = MODEL.get_parameter(weight).shape
        a, r, b = torch.randn(inner, RANK), torch.randn(RANK, RANK), torch.randn(RANK, out)
        path = f"blocks/{block}/{there}"
        FACTORS |= {f"{path}/xs_a": a, f"{path}/xs_r": r, f"{path}/xs_b": b, f"{path}/alpha": torch.tensor(ALPHA)}
        CHANGES[weight] = ALPHA / RANK * (a.double() @ r.double() @ b.double()).t()
BASE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
save_file(FACTORS, FOLDER / "adapter.safetensors")
save_file(BASE, FOLDER / "base.safetensors")
WANTED = {name: tensor + STRENGTH * CHANGES[name] if name in CHANGES else tensor for name, tensor in BASE.items()}
save_file(WANTED, FOLDER / "wanted.safetensors")

adapters = lyc_fx.load(FOLDER / "adapter.safetensors")
assert {entry.adapter.name for entry in adapters.entries} == {"lora-xs"} and not adapters.unread
program = lyc_fx.capture(MODEL, (X,))
spliced = lyc_fx.splice(program, adapters, STRENGTH)
lowered = lyc_fx.lower(spliced, passes=["swish"], check=True)
folded = lyc_fx.fold(spliced, check=True)
merged = Tower().double()
merged.load_state_dict(BASE)
lyc_fx.merge(merged, FOLDER / "adapter.safetensors", STRENGTH)
by_hand = Tower().double()
by_hand.load_state_dict(WANTED)

for state in (folded.state_dict(), merged.state_dict()):
    for name, tensor in WANTED.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-12, atol=1e-12)
for each in (spliced, lowered, folded, merged):
    torch.testing.assert_close(each(X), by_hand(X), rtol=1e-10, atol=1e-10)
steps = {step.name: step for step in lyc_fx.history(lowered)}
assert steps["distribute"].fired == 4 and not steps["distribute"].misses, steps["distribute"]
assert steps["swish"].fired == 2
assert "swish" not in {step.name for step in lyc_fx.history(lyc_fx.lower(spliced))}, "no pass runs uninvited"

again = writer("slashes").write(adapters).tensors
assert again.keys() == FACTORS.keys() and all(torch.equal(again[key], FACTORS[key]) for key in FACTORS)
own = convert(adapters, "slashes", like=MODEL).contents.tensors
assert torch.equal(own["tower/1/widen/xs_r"], FACTORS["blocks/1/up/xs_r"]) and len(own) == len(FACTORS)
loha = {"tower.0.widen.hada_w1_a": torch.randn(10, 2), "tower.0.widen.hada_w1_b": torch.randn(2, 6)}
loha |= {key.replace("w1", "w2"): torch.randn_like(tensor) for key, tensor in loha.items()}
assert {*convert(lyc_fx.load(loha), "slashes").contents.tensors} >= {"tower/0/widen/lora_a", "tower/0/widen/lora_b"}
lora = convert(adapters, "peft", like=MODEL)
lora.save(FOLDER / "lora")
lyc_fx.merge(by_hand, FOLDER / "lora", -STRENGTH)  # exact in float32, in which it is stored
for name, tensor in BASE.items():
    torch.testing.assert_close(by_hand.state_dict()[name], tensor, rtol=1e-4, atol=1e-4)
assert load_file(FOLDER / "adapter.safetensors").keys() == FACTORS.keys()
