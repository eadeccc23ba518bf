"""Change adapters and strengths on a compiled model while it runs, and take them out again, without a recompile."""

import torch
from torch import Tensor, nn

import lyc_fx


def style(seed: int) -> lyc_fx.AdapterSet:
    """A LoCon for the first layer of the model below, and a LoHa for the second."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        "lycoris_0.lora_up.weight": torch.randn(32, 2, generator=rng),
        "lycoris_0.lora_down.weight": torch.randn(2, 16, generator=rng),
    }
    for name, shape in {"w1_a": (4, 2), "w1_b": (2, 32), "w2_a": (4, 2), "w2_b": (2, 32)}.items():
        tensors[f"lycoris_2.hada_{name}"] = torch.randn(shape, generator=rng)
    return lyc_fx.load(tensors)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to(torch.bfloat16).eval()
x = torch.randn(3, 16, dtype=torch.bfloat16)
first, second = style(1), style(2)
compilations = 0


def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
    """A backend of torch.compile that runs the graph as it is, and counts."""
    global compilations
    compilations += 1
    return graph


with torch.no_grad():
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    base = compiled(x)

    # keep="memory" is the default; "pinned", "disk", a folder, or the checkpoint file itself need less of it.
    with lyc_fx.live(compiled, keep="disk") as live:
        for chosen in ({first: 0.8}, {first: 0.8, second: 0.5}, {second: {"2.*": 0.3}}):
            report = live.set(chosen)
            moved = (compiled(x) - base).abs().max()
            print(f"{len(chosen)} set(s), {len(report.applied)} adapters: the output moved by up to {moved:.3f}")

    print(f"restored, to the bit: {torch.equal(compiled(x), base)}")
    print(f"compiled {compilations} time(s)")
