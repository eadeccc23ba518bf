"""A LoRA on one layer of each kind: a call of the folded, the lowered and the spliced program, in milliseconds.

    python benchmarks/lower.py [--rank 16] [--rounds 30] [--device cuda] [--compile]

Each time is the best of the rounds, which take turns. Lowered programs run the exact chain on activations; spliced ones
compute the merged weight at every call.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.binding.report import table

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "Linear 1024 → 4096, 64 rows": (lambda: nn.Linear(1024, 4096), lambda: torch.randn(64, 1024)),
    "Conv2d 128 → 256, 3×3, 32²": (lambda: nn.Conv2d(128, 256, 3, padding=1), lambda: torch.randn(1, 128, 32, 32)),
    "ConvTranspose2d 256 → 128, 4×4 by 2, 16²": (
        lambda: nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1),
        lambda: torch.randn(1, 256, 16, 16),
    ),
    "Embedding 32000 × 512, 32 tokens": (lambda: nn.Embedding(32000, 512), lambda: torch.randint(0, 32000, (1, 32))),
}


def adapter(weight: Tensor, rank: int) -> lyc_fx.AdapterSet:
    first, second, *kernel = weight.shape
    up = torch.randn(first, rank, *(1 for _ in kernel))
    return lyc_fx.load(
        {"lycoris_0.lora_up.weight": up, "lycoris_0.lora_down.weight": torch.randn(rank, second, *kernel)}
    )


def programs(name: str, rank: int, device: str) -> tuple[dict[str, GraphModule], Tensor]:
    build, inputs = LAYERS[name]
    model, x = nn.Sequential(build()).eval().to(device), inputs().to(device)
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapter(model[0].weight, rank), 0.7)  # type: ignore[arg-type]
    lowered = lyc_fx.lower(spliced)
    assert sum(step.fired for step in lyc_fx.history(lowered) if step.name == "distribute") == 1
    return {"folded": lyc_fx.fold(spliced), "lowered": lowered, "spliced": spliced}, x


def timed(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    run(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for name in LAYERS:
        made, x = programs(name, options.rank, options.device)
        runs: dict[str, Callable[[Tensor], Tensor]] = dict(made)
        if options.compile:
            runs = {kind: torch.compile(program, fullgraph=True) for kind, program in made.items()}
        for run in runs.values():
            run(x)
        times = [{kind: timed(run, x) for kind, run in runs.items()} for _ in range(options.rounds)]
        best = {kind: min(each[kind] for each in times) for kind in runs}
        rows.append({"layer": name, **{f"{kind} ms": f"{value:.2f}" for kind, value in best.items()}})
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
