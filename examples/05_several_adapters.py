"""Several adapters at once, each with its own strength, which may change while the compiled program runs."""

from copy import deepcopy

import torch
from torch import Tensor, nn

import lyc_fx


def style(seed: int) -> lyc_fx.AdapterSet:
    """A LoCon for both layers of the model below."""
    rng = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (out, inner) in {"0": (32, 16), "2": (4, 32)}.items():
        tensors[f"lycoris_{module}.lora_up.weight"] = torch.randn(out, 2, generator=rng)
        tensors[f"lycoris_{module}.lora_down.weight"] = torch.randn(2, inner, generator=rng)
        tensors[f"lycoris_{module}.alpha"] = torch.tensor(1.0)
    return lyc_fx.load(tensors)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).eval()
x = torch.randn(3, 16)
first, second = style(1), style(2)

program = lyc_fx.splice(lyc_fx.capture(model, (x,)), [(first, 0.7), (second, -0.3)])
strengths = [program.get_buffer(f"lyc_fx.{position}.strength") for position in range(2)]
print(f"strengths: {', '.join(f'{float(strength):g}' for strength in strengths)}")

compilations = 0


def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
    """A backend of torch.compile that runs the graph as it is, and counts."""
    global compilations
    compilations += 1
    return graph


with torch.no_grad():
    compiled = torch.compile(program, backend=counting, fullgraph=True)
    both = compiled(x)
    strengths[1].fill_(0.0)
    alone = compiled(x)
    strengths[0].fill_(0.0)
    none = compiled(x)
    print(f"compiled {compilations} time(s) for three choices of strengths")

    for name, output, stack in (
        ("both", both, [(first, 0.7), (second, -0.3)]),
        ("the first alone", alone, [(first, 0.7)]),
        ("none", none, []),
    ):
        reference = deepcopy(model)
        if stack:
            lyc_fx.merge(reference, stack)
        print(f"{name}: differs from the merged model by {(output - reference(x)).abs().max():.1e}")
