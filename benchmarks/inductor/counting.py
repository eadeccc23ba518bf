"""The figures of programs, one row each: what inductor's code has more than the base's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torch.fx import GraphModule

import lyc_fx
from inductor.cases import ALGORITHMS, FORMS, LAYERS
from inductor.code import Code
from inductor.device import stand_in
from inductor.generating import generated
from inductor.kernels import cubins


@final
@dataclass(frozen=True)
class Row:
    """The figures of one program; the base's are its own, those of others are what they have more than the base."""

    layers: str
    algorithm: str
    form: str
    figures: dict[str, int]
    calls: dict[str, int]
    """How often the program launches or calls each kernel, GEMM and operator"""
    cubins: dict[str, int]
    """The bytes of each kernel's cubin"""


def rows(
    layers: Sequence[str], algorithms: Sequence[str], forms: Sequence[str], strength: float, folder: Path | None
) -> Iterator[Row]:
    """The base of each kind of layer, and every form of every algorithm on it; each kernel is compiled to a cubin."""
    torch.manual_seed(0)
    with stand_in(), fresh_cache():
        for kind in layers:
            program, x, weights = LAYERS[kind].captured()
            base = _code(program, x, folder, kind, "base")
            yield _row(kind, "base", "", base, {})
            for name in algorithms:
                if kind not in ALGORITHMS[name].on:
                    continue
                spliced = lyc_fx.splice(program, ALGORITHMS[name].adapters(weights), strength)
                for form in forms:
                    code = _code(FORMS[form](spliced), x, folder, kind, name, form)
                    yield _row(kind, name, form, code, _figures(base))


def _code(program: GraphModule, x: Tensor, folder: Path | None, *name: str) -> Code:
    code = generated(program, x)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{'-'.join(name).replace(', ', '-').replace(' ', '-')}.py").write_text(code.source)
    return code


def _figures(code: Code) -> dict[str, int]:
    return {
        "fused kernels": code.launches.total(),
        "GEMMs": code.gemms.total(),
        "other calls": code.fallbacks.total(),
        "bytes allocated": code.allocated,
        "bytes written": code.written,
    }


def _row(kind: str, name: str, form: str, code: Code, base: dict[str, int]) -> Row:
    over = {title: count - base.get(title, 0) for title, count in _figures(code).items()}
    return Row(kind, name, form, over, dict(code.launches + code.gemms + code.fallbacks), cubins(code))
