"""Ways to run a model with an adapter."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import lyc_fx
from forwarding import peers
from forwarding.nets import adapters

STRENGTH = 0.7
Run = Callable[[Tensor], Tensor]


def forms(model: nn.Module, algorithm: str, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """The program folded, and what runs the adapter beside the weights, each as a module."""
    made = adapters(model, algorithm)
    if made is None:
        return
    adapted = lyc_fx.splice(lyc_fx.capture(model, (x,)), made, STRENGTH)
    yield "folded", lyc_fx.fold(adapted, lossy=True)
    lowered = lyc_fx.lower(adapted)
    yield "lowered", lowered
    yield "staged", lyc_fx.stage(lowered)
    planned = lyc_fx.plan(adapted)
    yield "planned", lyc_fx.stage(lyc_fx.lower(adapted, planned))
    own = copy.deepcopy(model)
    lyc_fx.attach(own, made, STRENGTH)
    yield "attached", own
    for name, peer in (("PEFT", peers.peft), ("LyCORIS", peers.lycoris)):
        found = peer(model, algorithm)
        if found is not None:
            yield name, found


def compiled(model: nn.Module, *, freezing: bool = False) -> Run:
    """By inductor, for one size."""
    options = {"freezing": True} if freezing else None
    return torch.compile(model, dynamic=False, options=options)
