"""Ways to spoil what a file says besides its tensors, and files that are large or promise to be."""

import random
from dataclasses import replace
from typing import Any

import torch

from hostile import wild
from hostile.draft import Draft, Raw, drafted, encoded

_FIELDS = (
    "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "r", "use_rslora", "feedforward_modules", "peft_type",
    "target_modules", "use_dora", "fan_in_fan_out", "init_lora_weights", "modules_to_save", "bias",
)  # fmt: skip


def metadata(rng: random.Random, draft: Draft) -> Draft:
    """The header's own texts, and diffusers' configuration in one of them."""
    if rng.random() < 0.3:
        said: Any = rng.choice([{wild.text(rng): wild.value(rng)}, wild.value(rng), {"a": "b" * 10**5}])
    else:
        said = {"format": "pt", "lora_adapter_metadata": _said(rng, "unet.")}
    return replace(draft, header=(("__metadata__", said), *(p for p in draft.header if p[0] != "__metadata__")))


def configuration(rng: random.Random, draft: Draft) -> Draft:
    """PEFT's configuration: a field of any value, or a file of any text."""
    if rng.random() < 0.2:
        text = _said(rng, "").encode("utf-8", "surrogatepass")
        ways = (text, text.decode("utf-8", "replace").encode("utf-16"), rng.randbytes(50), b"\xef\xbb\xbf" + text, b"")
        return replace(draft, config=rng.choice(ways))
    config = dict(draft.config) if isinstance(draft.config, dict) else {}
    for _ in range(rng.choice([1, 1, 3])):
        config[rng.choice(_FIELDS)] = _field(rng)
    return replace(draft, config=config)


def _field(rng: random.Random) -> Any:
    match rng.randrange(4):
        case 0:
            return {rng.choice(wild.PATTERNS): wild.value(rng) for _ in range(3)}
        case 1:
            return rng.choice(wild.PATTERNS)
        case 2:
            return {"fc": wild.number(rng), "conv": wild.number(rng)}
    return wild.value(rng)


def _said(rng: random.Random, component: str) -> str:
    match rng.randrange(4):
        case 0:
            return rng.choice(["", "null", "[]", "7", "{", "[" * 10**5, "{}" * 9, "NaN", '{"a":1,"a":2}', "\0"])
        case 1:
            return wild.deep(rng)
        case 2:
            return encoded(wild.value(rng))
    return encoded({f"{component}{rng.choice(_FIELDS)}": _field(rng) for _ in range(3)})


def residual(rng: random.Random, draft: Draft) -> Draft:
    """A sparse difference whose size is not that of the weight: a few bytes that mean terabytes."""
    dtype = rng.choice([torch.int64, torch.int32, torch.float64, torch.int16, torch.bool, torch.complex64])
    odd = [0, 1, -1, 6, 4, 2**15, 2**20, 2**31 - 1, 2**40, 2**62, float("nan"), float("inf"), 0.5]
    size = [rng.choice(odd) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 70]))]
    try:
        tensor = torch.tensor(size).to(dtype)
    except (RuntimeError, OverflowError, ValueError):
        tensor = torch.tensor(size, dtype=torch.float64)
    count = rng.choice([0, 1, 2, 5])
    indices = torch.randint(-1, 6, (rng.choice([len(size), 1, 2]), count)) if rng.random() < 0.9 else torch.ones(2)
    return drafted({
        "lycoris_fc.bias_indices": indices.to(rng.choice([torch.int64, torch.int16, torch.float32, dtype])),
        "lycoris_fc.bias_values": torch.full((count,), rng.choice([1.0, float("nan"), 3e38])),
        "lycoris_fc.bias_size": tensor,
    })  # fmt: skip


def large(rng: random.Random, draft: Draft) -> Draft:
    """Some megabytes, so that memory in proportion to the file is seen."""
    match rng.randrange(7):
        case 0:  # a header of many tensors
            each = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            names = [
                f"{rng.choice(['lora_unet', 'a.b'])}{i}.{rng.choice(['alpha', 'lora_up.weight', 'x'])}"
                for i in range(20_000)
            ]
            return Draft(tuple((name, each) for name in names), b"")
        case 1:  # a value for each dimension
            return Draft((("fc.diff", {"dtype": "F32", "shape": [1] * 10**6, "data_offsets": [0, 4]}),), bytes(4))
        case 2:
            return Draft(
                (("x" * 4 * 10**6 + ".alpha", {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),), bytes(4)
            )
        case 3:
            filler = rng.choice(["[],", "{},", '{"":1},', "1.5,", '"a",'])
            return replace(draft, config={**_own(draft), "x": Raw("[" + filler * (10**6 // len(filler)) + "1]")})
        case 4:
            many = {f"block.{i}.fc": 1 for i in range(20_000)}
            return replace(draft, config={**_own(draft), "alpha_pattern": many})
        case 5:
            rank = rng.choice([1, 64])
            factors = {
                "fc.lora_up.weight": torch.ones(2 * 10**6 // rank, rank),
                "fc.lora_down.weight": torch.ones(rank, 9),
            }
            return drafted({name: f.to(rng.choice([torch.float8_e5m2, torch.float32])) for name, f in factors.items()})
    return replace(draft, config=b" " * rng.choice([10**6, 9 * 10**6]) + b"{}")


def _own(draft: Draft) -> dict[str, Any]:
    return draft.config if isinstance(draft.config, dict) else {"lora_alpha": 1}
