"""Models in the wrappers of distributed training, in a group of one process."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import lyc_fx
from lyc_fx.errors import Unsupported

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this build of torch has no gloo"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
STRENGTH = 0.7
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(6, 6).double(), nn.Linear(6, 9).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fsdp(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrapped(model: nn.Module) -> nn.Module:
        model.first = wrap(model.first)  # type: ignore[assignment, arg-type]
        return model

    return wrapped


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "DDP inside": inside(DistributedDataParallel),
    "FSDP": fsdp(use_orig_params=True),
    "FSDP inside": inside(fsdp(use_orig_params=True)),
    "FSDP, summoned": fsdp(use_orig_params=True),
    "FSDP, flat, summoned": fsdp(),
    "FSDP inside, flat, summoned": inside(fsdp()),
}


def adapters() -> tuple[lyc_fx.AdapterSet, nn.Module]:
    rng, wanted, keys = torch.Generator().manual_seed(1), Net(), dict[str, Tensor]()
    for name, out in (("first", 6), ("head", 9)):
        up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((out, 2), (2, 6)))
        keys |= {f"lycoris_{name}.lora_up.weight": up, f"lycoris_{name}.lora_down.weight": down}
        with torch.no_grad():
            wanted.get_submodule(name).weight += STRENGTH * up @ down
    return lyc_fx.load(keys), wanted


@pytest.mark.parametrize("kind", WRAPPED)
def test_merged_weights_stay(kind: str) -> None:
    """FSDP takes back what it lends as a view; another tensor in its place would be lost."""
    (style, wanted), model = adapters(), WRAPPED[kind](Net())
    lent = [m for m in model.modules() if isinstance(m, FullyShardedDataParallel)] if "summoned" in kind else []
    with torch.no_grad():
        model(X)
        with FullyShardedDataParallel.summon_full_params(model) if lent else nullcontext():
            report = lyc_fx.merge(model, style, STRENGTH)
        torch.testing.assert_close(model(X), wanted(X), rtol=1e-12, atol=1e-12)
    assert len(report.applied) == 2 and not report.notes


@pytest.mark.parametrize("kind", ["FSDP, flat, summoned", "FSDP inside, flat, summoned"])
def test_flat_parameters_are_no_weights(kind: str) -> None:
    style, _ = adapters()
    with pytest.raises(Unsupported, match=r"is wrapped by FSDP, which keeps its weights flat: .*summon_full_params"):
        lyc_fx.merge(WRAPPED[kind](Net()), style, STRENGTH)
