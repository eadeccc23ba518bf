"""Compiling programs and models with inductor."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import WrongArgument
from lyc_fx.graph.program import BANK, facts, uncompiled


def compile(  # the verb of torch
    model: nn.Module, *, frozen: bool = False, autotune: bool = False, backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """Compile a captured program, or a model with or without attached adapters, without graph breaks.

    A program is compiled whole, for the sizes that its capture left open. In a model, blocks that are alike (those of a
    `ModuleList`) are compiled in place, once for all of them, and what lies around them runs eagerly: the model itself
    is returned. A model without such blocks is compiled whole.

    `frozen`: weights become constants, which inductor packs for the processor; only for programs without adapters (what
    `fold` returns), under `torch.no_grad()`, since later changes of weights would have no effect. `autotune`: inductor
    tries several kernels for each product and convolution, and takes minutes. `backend` is that of `torch.compile`.

    Raises WrongArgument for anything that is no module, and for `frozen` on what has adapters.
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
    given: dict[str, Any] = {"fullgraph": True, "backend": backend, "options": options or None}
    if isinstance(model, GraphModule):
        return torch.compile(model, dynamic=bool(facts(model).ranges), **given)
    blocks = list(repeated_blocks(model))
    for block in blocks:
        block.compile(**given)
    return model if blocks else torch.compile(model, **given)


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost blocks of one class that stand several times in a list of modules."""
    pending = [model]
    while pending:
        module = pending.pop()
        children = list(module.children())
        if isinstance(module, nn.ModuleList) and len(children) > 1 and len({type(child) for child in children}) == 1:
            yield from children
        else:
            pending += children
