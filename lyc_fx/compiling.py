"""Compiling programs and models with inductor."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.caching.cached_inductor import CachedInductor
from lyc_fx.errors import WrongArgument
from lyc_fx.graph.program import BANK, facts, uncompiled


def compile(  # the verb of torch
    model: nn.Module,
    *,
    frozen: bool = False,
    autotune: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    cache: str | os.PathLike[str] | None = None,
) -> Callable[..., Any]:
    """Compile a captured program, or a model with or without attached adapters, without graph breaks.

    A program is compiled whole, for the sizes that its capture left open. In a model, blocks that are alike (those of a
    `ModuleList`) are compiled in place, once for all of them, and what lies around them runs eagerly: the model itself
    is returned. A model without such blocks is compiled whole.

    `frozen`: weights become constants, which inductor packs for the processor; only for programs without adapters (what
    `fold` returns), under `torch.no_grad()`, since later changes of weights would have no effect. `autotune`: inductor
    tries several kernels for each product and convolution, and takes minutes. `backend` is that of `torch.compile`.

    `cache` is a file for what inductor compiles: it is written when something was compiled, and what it has is not
    compiled again, in this process or another, for any adapters of the same form, and any values of the weights. It
    holds code, which is run: use a file only from whom you would take a program. A file that is damaged, or comes from
    another torch, Python or processor, is not used (CacheNotUsed, a warning), and is replaced.

    Raises WrongArgument for anything that is no module, for `frozen` on what has adapters, and for `cache` with another
    backend than inductor; BadFile for a `cache` that is some other file, or in a folder that does not exist.
    """
    if not isinstance(model, nn.Module):
        raise WrongArgument(f"a program or a model is expected, not {type(model).__name__}")
    model = uncompiled(model)
    if frozen and any(name.rpartition(".")[2] == BANK for name, _ in model.named_modules()):
        raise WrongArgument(
            "frozen=True would fix the adapters, so that changes have no effect: fold the program first"
        )
    options = {"freezing": True} if frozen else {}
    options |= {"max_autotune": True} if autotune else {}
    if cache is not None and backend != "inductor":
        raise WrongArgument(f"cache= keeps what inductor compiles, and the backend is {backend!r}")
    given: dict[str, Any] = {"fullgraph": True, "backend": backend, "options": options or None}
    if cache is not None:
        given |= {"backend": CachedInductor(cache, options), "options": None}
    if isinstance(model, GraphModule):
        return torch.compile(model, dynamic=bool(facts(model).ranges), **given)
    blocks = list(repeated_blocks(model))
    for block in blocks:
        block.compile(**given)
    return model if blocks else torch.compile(model, **given)


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost blocks of one class that stand several times in a list of modules.

    Torch's own layers are no blocks: dynamo does not begin at their code.
    """
    pending = [model]
    while pending:
        module = pending.pop()
        children = list(module.children())
        alike = (
            isinstance(module, nn.ModuleList) and len(children) > 1 and len({type(child) for child in children}) == 1
        )
        if alike and not any(_is_torchs(child) for child in children):
            yield from children
        else:
            pending += children


def _is_torchs(module: nn.Module) -> bool:
    return str(getattr(module.forward, "__module__", "")).startswith("torch.nn.")
