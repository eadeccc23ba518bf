"""What the peers' users run: load, merge, save. A process of its own: `python -m folding.peers PEER …`.

The UNet takes its weights straight from the mapped file, the fastest way there is. LyCORIS builds its network from
the adapter file; where it cannot, from the settings that the adapter was made with. The seconds start after the
imports.
"""

import argparse
import json
import sys
import time
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from folding import adapters

warnings.simplefilter("ignore")


@torch.no_grad()
def lycoris(model: nn.Module, adapter: Path, kind: str) -> tuple[nn.Module, str]:
    from lycoris import create_lycoris_from_weights

    note = ""
    try:
        network: Any = create_lycoris_from_weights(1.0, str(adapter), model)[0]
    except Exception as error:
        note = f"cannot load its own file ({type(error).__name__}), so made from the settings"
        network = adapters.network(model, kind)
        network.load_weights(str(adapter))
        network.apply_to()
        network.restore()
    layers = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in model.modules())
    if len(network.loras) < layers:
        note += f" only {len(network.loras)} of {layers} layers"
    network.merge_to(1.0)
    return model, note.strip()


@torch.no_grad()
def peft(model: nn.Module, adapter: Path, kind: str) -> tuple[nn.Module, str]:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), ""  # type: ignore[arg-type]


PEERS = {"LyCORIS": lycoris, "PEFT": peft}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", required=True)
    parser.add_argument("--kind", required=True)
    chosen = parser.parse_args()
    with redirect_stdout(sys.stderr):  # LyCORIS logs to stdout
        for name in ("diffusers", chosen.peer.lower()):
            import_module(name)
        started = time.perf_counter()
        model = adapters.loaded(chosen.base, chosen.size)
        merged, note = PEERS[chosen.peer](model, chosen.adapter, chosen.kind)
        save_file(merged.state_dict(), chosen.out, {"format": "pt"})
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "note": note}))


if __name__ == "__main__":
    main()
