"""Splice and lower of a UNet of SDXL's size (794 adapted layers), in seconds of processor time, without weights.

    python benchmarks/graph.py [--families locon loha lokr] [--rounds 2] [--layers 2 10]

The layers become chains; how many do is printed too. `--layers` are the transformer blocks of the two lower levels, for
a quick look at a smaller one.
"""

import argparse
import time

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.binding.report import table
from lyc_fx.errors import BadAdapter


def unet(layers: tuple[int, int]) -> nn.Module:
    with torch.device("meta"):
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, *layers),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def captured(model: nn.Module) -> GraphModule:
    with torch.device("meta"):
        added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)}
        inputs = torch.randn(2, 4, 64, 64), torch.ones(()), torch.randn(2, 77, 2048)
        return lyc_fx.capture(model, inputs, kwargs={"added_cond_kwargs": added})


def adapters(model: nn.Module, name: str) -> AdapterSet:
    """A random adapter for each Linear and Conv2d, of those that fit."""
    family, entries = next(f for f in FAMILIES if f.name == name), []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            try:
                adapter = random_adapter(family, module.weight.shape, rank=8, alpha=4.0)
            except BadAdapter:
                continue
            entries.append(Entry(f"lora_unet_{path.replace('.', '_')}", "weight", adapter, (path,)))
    return AdapterSet(tuple(entries), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["locon", "loha", "lokr"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", nargs=2, type=int, default=(2, 10))
    args = parser.parse_args()
    model = unet(tuple(args.layers))
    started = time.process_time()
    program = captured(model)
    print(f"capture: {time.process_time() - started:.1f} s, {len(program.graph.nodes)} nodes")
    rows = []
    for name in args.families:
        made = adapters(model, name)
        times: dict[str, list[float]] = {"splice": [], "lower": []}
        for _ in range(args.rounds):
            started = time.process_time()
            spliced = lyc_fx.splice(program, made, 0.7)
            between = time.process_time()
            lowered = lyc_fx.lower(spliced)
            times["splice"].append(between - started)
            times["lower"].append(time.process_time() - between)
        fired = sum(step.fired for step in lyc_fx.history(lowered) if step.name == "distribute")
        best = {step: f"{min(each):.1f}" for step, each in times.items()}
        rows.append({"family": name, "adapters": len(made.entries), "chains": fired} | best)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
