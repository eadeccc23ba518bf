"""`lyc_fx.merge` against LyCORIS's own `merge_to`: the same layers, the same adapters, in one process.

    python benchmarks/merge.py [--small] [--algorithms locon loha lokr] [--rounds 3] [--device cuda]

Layers in the shapes of SDXL's UNet, in bfloat16; adapters are made and saved by LyCORIS. lyc-fx computes in float64
and rounds once; `merge_to` computes in bfloat16, and `merge_to(precise=True)` in float64 (a dash where it fails).
Each time is the best of the rounds, which take turns. Needs lycoris-lora.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lyc_fx
from lyc_fx.binding.report import table

LINEAR = {(320, 320): 8, (640, 640): 16, (640, 2048): 4, (5120, 640): 2, (640, 2560): 2, (1280, 1280): 32,
          (1280, 2048): 12, (10240, 1280): 6, (1280, 5120): 6}  # fmt: skip
CONV = {(320, 320): 4, (640, 320): 1, (640, 640): 3, (1280, 640): 1, (1280, 1280): 3}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "locon": {"linear_dim": 16, "linear_alpha": 8, "conv_dim": 16, "conv_alpha": 8},
    "loha": {"linear_dim": 8, "linear_alpha": 4, "conv_dim": 8, "conv_alpha": 4},
    "lokr": {"linear_dim": 10000, "linear_alpha": 1, "conv_dim": 10000, "conv_alpha": 1, "factor": 8},
}


def layers(small: bool) -> nn.Sequential:
    """100 layers; with `small`, one of each shape up to 640 channels."""
    made: list[nn.Module] = []
    for (out, inner), count in LINEAR.items():
        if not small or max(out, inner) <= 640:
            made += [nn.Linear(inner, out, dtype=torch.bfloat16) for _ in range(1 if small else count)]
    for (out, inner), count in CONV.items():
        if not small or max(out, inner) <= 640:
            made += [nn.Conv2d(inner, out, 3, dtype=torch.bfloat16) for _ in range(1 if small else count)]
    return nn.Sequential(*made)


def timed(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, small: bool, rounds: int, device: str, folder: Path) -> dict[str, object]:
    """One row of the table."""
    import lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    with torch.device(device):
        model, target = layers(small), layers(small)
    count = sum(layer.weight.numel() for layer in model)  # type: ignore[union-attr, operator, misc]
    lycoris.LycorisNetwork.apply_preset({"target_name": [".*"], "target_module": []})
    network = lycoris.create_lycoris(model, 1.0, algo=name, **ALGORITHMS[name])
    network.apply_to()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if not key.endswith("alpha"):
                parameter.normal_(0, 0.02)
    network.save_weights(str(folder / "adapter.safetensors"), torch.bfloat16, {})
    network.to(device, torch.bfloat16)
    adapters = lyc_fx.load(folder / "adapter.safetensors")
    ours, theirs, precise = [], [], []
    for _ in range(rounds):
        ours.append(timed(lambda: lyc_fx.merge(target, adapters, lossy=True)))
        theirs.append(timed(lambda: network.merge_to(1.0)))
        try:
            precise.append(timed(lambda: network.merge_to(1.0, precise=True)))
        except RuntimeError:  # LyCORIS 4.1.3 adds a LoHa or LoKr of a convolution in the shape of a matrix
            precise = [float("nan")]
    mine, bfloat16, double = min(ours), min(theirs), min(precise)
    return {
        "algorithm": name,
        "layers": len(model),
        "parameters": f"{count / 1e6:.0f} M",
        "lyc_fx.merge s": f"{mine:.2f}",
        "merge_to s": f"{bfloat16:.2f}",
        "ratio": f"{bfloat16 / mine:.2f}",
        "precise s": "-" if double != double else f"{double:.2f}",
        "ratio to precise": "-" if double != double else f"{double / mine:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few layers, in seconds")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, chosen.small, chosen.rounds, chosen.device, Path(folder)) for name in chosen.algorithms]
    print(torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU", f"torch {torch.__version__}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
