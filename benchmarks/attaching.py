"""Attaching adapters to a UNet of SDXL's shapes (794 layers), and exchanging them, in seconds of processor time.

    python benchmarks/attaching.py [--families locon lokr …] [--layers 2 10] [--dtype bfloat16]

`attach` captures, splices, lowers and stages each kind of layer once; `set` puts other adapters of the same form in
place, and `swap` what `prepare` has computed. Beside it: the time to copy the factors' bytes twice, which is the least
that a change can cost (a swap's floor is a copy of all that lies beside the layers, at the bandwidth of a large copy),
and PEFT's `inject_adapter_in_model`. `--layers` are the transformer blocks of the two lower levels, for a quick look.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
from graph import adapters, unet
from swapping.clock import bandwidth
from torch import nn

import lyc_fx
from lyc_fx.binding.report import table


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def peft(model: nn.Module) -> None:
    import peft as library

    layers = [n for n, each in model.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    library.inject_adapter_in_model(library.LoraConfig(r=8, target_modules=layers), model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["locon", "lokr", "diag-oft"])
    parser.add_argument("--layers", type=int, nargs=2, default=[2, 10])
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    dtype, layers = getattr(torch, args.dtype), (args.layers[0], args.layers[1])
    model = unet(layers).to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    rows = []
    for name in args.families:
        first, second = (adapters(model, name) for _ in range(2))
        held: list[lyc_fx.Attached] = []
        attach = seconds(lambda: held.append(lyc_fx.attach(model, first, 0.7)))  # noqa: B023  # called at once
        [attached] = held
        change = seconds(lambda: attached.set(second, 0.3))  # noqa: B023
        strength = seconds(lambda: attached.set_strengths(0.5))  # noqa: B023
        prepared: list[lyc_fx.Prepared] = []
        prepare = seconds(lambda: prepared.append(attached.prepare(second, 0.3)))  # noqa: B023
        swap = min(seconds(lambda: attached.swap(prepared[0])) for _ in range(3))  # noqa: B023
        beside = sum(values.nbytes for _, values in prepared[0].copies)
        factors = [factor for entry in second.entries for factor in entry.adapter.factors().values()]
        floor = seconds(lambda: [factor.clone().clone() for factor in factors])  # noqa: B023
        attached.detach()
        rows.append(
            {"algorithm": name, "layers": len(second.entries), "attach, s": f"{attach:.1f}", "set, s": f"{change:.2f}"}
            | {"set_strengths, s": f"{strength:.2f}", "floor, s": f"{floor:.3f}", "prepare, s": f"{prepare:.2f}"}
            | {"swap, s": f"{swap:.3f}", "its floor, s": f"{2 * beside / bandwidth(torch.device('cpu')):.3f}"}
        )
    other = copy.deepcopy(model)
    print(f"PEFT's LoRA: {seconds(lambda: peft(other)):.1f} s")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
