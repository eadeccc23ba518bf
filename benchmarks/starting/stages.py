"""A process that makes a model, adapts and compiles it, and calls it once; it prints the seconds that each stage took.

python -m starting.stages FORM KEEPS FOLDER SEED WIDTH BLOCKS
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

FORMS = ("program", "attached", "attached, whole", "base")
TOKENS = 16


class Clock:
    """Seconds since the start, and of each stage."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        self.stages[name], self.last = now - self.last, now


def main(form: str, keeps: str, folder: Path, seed: int, width: int, blocks: int) -> dict[str, float]:
    clock = Clock()
    import torch

    clock.stage("import torch")
    import torch._dynamo
    import torch._inductor.compile_fx

    clock.stage("import torch's compiler")
    from forwarding.nets import adapters

    import lyc_fx
    from starting.stack import Stack

    torch.manual_seed(seed)
    model = Stack(width, blocks).eval().requires_grad_(False)
    made, x = adapters(model, "LoRA 16"), torch.randn(1, TOKENS, width)
    assert made is not None
    clock.stage("model")
    artefacts, cache = folder / "artefacts", folder / "compiled"
    if keeps == "artefacts" and artefacts.exists():
        torch.compiler.load_cache_artifacts(artefacts.read_bytes())
    with torch.no_grad():
        if form == "program":
            spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), made, 0.7, rank=16)
            ready: Any = lyc_fx.stage(lyc_fx.lower(spliced))
        else:
            ready = model
            if form != "base":
                lyc_fx.attach(model, made, 0.7, rank=16)
        clock.stage("adapt")
        run = lyc_fx.compile(ready, cache=cache) if keeps == "file" else torch.compile(ready)
        run(x)
    clock.stage("first call")
    found = clock.stages | {"total": clock.last - clock.started}
    if keeps == "artefacts" and not artefacts.exists():
        kept = torch.compiler.save_cache_artifacts()
        assert kept is not None
        artefacts.write_bytes(kept[0])
    return found


if __name__ == "__main__":
    _, form, keeps, folder, seed, width, blocks = sys.argv
    print(json.dumps(main(form, keeps, Path(folder), int(seed), int(width), int(blocks))))
