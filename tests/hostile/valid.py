"""Small valid files of every family, layout and format, for one small model."""

import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hostile.draft import Draft, drafted
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.errors import BadAdapter

_LORA = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}
_DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)


def model() -> nn.Module:
    """Two layers and a norm; the weights are the same each time."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"fc": nn.Linear(4, 6), "block": nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3)}), "norm": nn.LayerNorm(6)}
    )


SHAPES = {"fc": (6, 4), "block.conv": (8, 4, 3, 3), "norm": (6,)}


def adapters(seed: int) -> list[Draft]:
    """One draft for each family, layout, layer and format that can hold it."""
    rng = random.Random(seed)
    return [*_lycoris(rng), *_peft(rng), *_diffusers(rng), *_sparse(rng)]


def checkpoint() -> Draft:
    """The model's own weights."""
    tensors = {name: tensor.detach() for name, tensor in model().state_dict().items()}
    return drafted(tensors | {"steps": torch.tensor(7)}, {"format": "pt"})


def _factors(rng: random.Random) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Family, module, and tensors by LyCORIS's suffix."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    for family in FAMILIES:
        for layout in family.layouts:
            for module, shape in SHAPES.items():
                try:
                    made = random_adapter(
                        family, shape, layout=layout, rank=2, alpha=1.0, dtype=rng.choice(_DTYPES), generator=generator
                    )
                except (BadAdapter, ValueError, IndexError):  # of a layout that such a weight cannot have
                    continue
                yield family.name, module, made.written("weight")


def _lycoris(rng: random.Random) -> Iterator[Draft]:
    for _, module, tensors in _factors(rng):
        prefix = rng.choice([f"lycoris_{module.replace('.', '_')}", f"lora_unet_{module.replace('.', '_')}", module])
        yield drafted({f"{prefix}.{suffix}": tensor for suffix, tensor in tensors.items()}, {"ss_network_dim": "2"})


def _peft(rng: random.Random) -> Iterator[Draft]:
    for family, module, tensors in _factors(rng):
        if family in ("locon", "loha", "lokr") and "lora_mid.weight" not in tensors:
            own = {s: t for s, t in tensors.items() if s != "alpha"}
            named = {f"base_model.model.{module}.{_LORA.get(s, s)}": t for s, t in own.items()}
            yield drafted(named, config=_config(family, module))
    ia3 = {"base_model.model.fc.ia3_l": torch.ones(1, 4)}
    yield drafted(ia3, config=_config("ia3", "fc") | {"feedforward_modules": ["fc"]})
    embedding = {
        "base_model.model.fc.lora_embedding_A": torch.ones(2, 6),
        "base_model.model.fc.lora_embedding_B": torch.ones(4, 2),
    }
    yield drafted(embedding, config=_config("lora", "fc"))
    hra = {"base_model.model.fc.hra_u": torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.5], [0.0, 0.0]])}
    yield drafted(hra, config=_config("hra", "fc") | {"apply_GS": rng.random() < 0.5})
    vera = {"base_model.vera_A": torch.ones(2, 5), "base_model.vera_B": torch.ones(6, 2)}
    vectors = {"vera_lambda_b": torch.ones(6), "vera_lambda_d": torch.ones(2)}
    yield drafted(vera | {f"base_model.model.fc.{n}": v for n, v in vectors.items()}, config=_config("vera", "fc"))


def _config(family: str, module: str) -> dict[str, Any]:
    alpha = "lora_alpha" if family in ("locon", "lora") else "alpha"
    kind = {"locon": "LORA"}.get(family, family.upper())
    return {
        "peft_type": kind, "r": 2, alpha: 4, "target_modules": ["fc", "conv"], "use_rslora": False,
        "alpha_pattern": {module: 3}, "rank_pattern": {}, "feedforward_modules": [],
    }  # fmt: skip


def _diffusers(rng: random.Random) -> Iterator[Draft]:
    for family, module, tensors in _factors(rng):
        if family == "locon" and "lora_mid.weight" not in tensors:
            own = {s: t for s, t in tensors.items() if s != "alpha"}
            training = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {module: 3}}
            metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(training)}
            bias = {f"unet.{module}.lora_B.bias": torch.ones(SHAPES[module][0])} if rng.random() < 0.5 else {}
            yield drafted({f"unet.{module}.{_LORA[s]}": t for s, t in own.items()} | bias, metadata)


def _sparse(rng: random.Random) -> Iterator[Draft]:
    for dtype in (torch.int64, torch.int16, torch.float32):
        yield drafted({
            "lycoris_fc.bias_indices": torch.tensor([[0, 5], [1, 3]]).to(dtype),
            "lycoris_fc.bias_values": torch.randn(2),
            "lycoris_fc.bias_size": torch.tensor([6, 4]).to(dtype),
        })  # fmt: skip
