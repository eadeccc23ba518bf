"""Weights that are not plain tensors in memory: refused in words, before anything is changed, on every road."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from nets import certain, many
from torch import nn
from torch.nn.utils import prune, spectral_norm
from torch.testing._internal.two_tensor import TwoTensor

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.errors import BadAdapter, CaptureError, Unsupported

LOCON = next(f for f in FAMILIES if f.name == "locon")
ADAPTERS = many(**{"0": certain((LOCON, LOCON.layouts[0]), (5, 3))})
X = torch.randn(2, 3)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))


def quantized() -> nn.Module:
    """With a weight as torchao makes it: a subclass that computes by dispatch."""
    model = plain()
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    return model


def offloaded() -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    model: nn.Module = accelerate.cpu_offload(plain(), execution_device="cpu")
    return model


def scripted() -> nn.Module:
    return torch.jit.script(plain())  # type: ignore[no-any-return]


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def refused(model: nn.Module, words: str) -> None:
    """By merge, live and capture, and the weights that are there stay."""
    other = model[1].weight  # type: ignore[index]
    before = other.detach().clone()
    for attempt in (lambda: lyc_fx.merge(model, ADAPTERS), lambda: lyc_fx.live(model).set(ADAPTERS)):
        with pytest.raises(Unsupported, match=words):
            attempt()
    with pytest.raises(CaptureError, match=words):
        lyc_fx.capture(model, (X,))
    assert other.is_meta or torch.equal(torch.as_tensor(other.detach()), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (quantized, "0.weight is a .*TwoTensor, which is not a plain tensor .quantized.*convert"),
        (offloaded, "0.weight is offloaded by accelerate.*remove_hook_from_submodules"),
        (scripted, "the model is TorchScript.*Python model"),
    ],
)
def test_a_foreign_model_is_refused(make: Callable[[], nn.Module], words: str) -> None:
    refused(make(), words)


def test_a_sharded_model_is_refused(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = plain()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    refused(model, "0.weight is a torch.distributed.tensor.DTensor, spread over devices.*before it is sharded")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), r"0.weight is pruned.*prune.remove\(module"),
        (spectral_norm, "0.weight is computed by spectral norm.*remove_spectral_norm"),
    ],
)
def test_weights_that_a_hook_computes(make: Callable[[nn.Module], object], words: str) -> None:
    model = plain()
    make(model[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Unsupported, match=words):
        lyc_fx.merge(model, ADAPTERS)
    with pytest.raises(Unsupported, match=words):
        lyc_fx.live(model).set(ADAPTERS)
    with pytest.raises(BadAdapter, match=r"computed from .*0\.weight_orig"):
        lyc_fx.splice(lyc_fx.capture(model, (X,)), ADAPTERS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_foreign_weight_beside_the_adapted_one_is_no_obstacle() -> None:
    model = plain()
    weight = model[1].weight.detach()
    model[1].weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    before = model[0].weight.detach().clone()
    lyc_fx.merge(model, ADAPTERS, 0.7)
    delta = ADAPTERS.entries[0].adapter.delta((5, 3))  # type: ignore[attr-defined]
    torch.testing.assert_close(model[0].weight.detach(), before + 0.7 * delta)


class Named(nn.Parameter):
    """A subclass that computes as any parameter does, as many libraries have one."""


def test_a_parameter_of_a_class_of_its_own_is_plain() -> None:
    model = plain()
    model[0].weight = Named(model[0].weight.detach().clone())
    before = model[0].weight.detach().clone()
    lyc_fx.merge(model, ADAPTERS, 0.7)
    assert not torch.equal(model[0].weight.detach(), before)
    lyc_fx.capture(model, (X,))


def test_weights_without_a_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LazyLinear(4))
    words = r"1\.weight has no shape before the model's first call: call it once"
    for attempt in (lambda: lyc_fx.merge(model, ADAPTERS), lambda: lyc_fx.live(model).set(ADAPTERS)):
        with pytest.raises(Unsupported, match=words):
            attempt()
    with pytest.raises(CaptureError, match=words):
        lyc_fx.capture(model, (X,))
    model(X)
    lyc_fx.merge(model, ADAPTERS)
