"""Weights that the model itself casts between splice's formula and the layer."""

import pytest
import torch
from lowering import EVEN, fired, made, misses
from nets import many
from torch import nn
from torch.fx import GraphModule, Node

import lyc_fx
from lyc_fx.graph.rewrite import MERGED


def merged(program: GraphModule) -> list[Node]:
    return [node for node in program.graph.nodes if MERGED in node.meta]


class Cast(nn.Module):
    """A layer on its weight in other dtypes."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtypes = nn.Linear(6, 16), dtypes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight
        for dtype in self.dtypes:
            weight = weight.to(dtype)
        return torch.nn.functional.linear(x, weight)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_a_weight_that_is_rounded_on_the_way_stays(dtype: torch.dtype) -> None:
    x = torch.randn(3, 6)
    adapters = many(layer=made("locon", EVEN))
    before = lyc_fx.splice(lyc_fx.capture(Cast(dtype, torch.float32), (x,)), adapters, 0.7)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 0 and f"is rounded to {dtype} on its way" in misses(after)[0]
    torch.testing.assert_close(after(x), before(x))


def test_a_base_is_cast_as_the_model_casts_it() -> None:
    x = torch.randn(3, 6)
    adapters = many(layer=made("locon", EVEN))
    before = lyc_fx.splice(lyc_fx.capture(Cast(torch.bfloat16, torch.float32), (x,)), adapters, 0.7)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    for strength in after.buffers():
        strength.fill_(0.0)
    for strength in before.buffers():
        strength.fill_(0.0)
    torch.testing.assert_close(after(x), before(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2], ids=["inputs", "outputs"])
def test_norms_of_a_float8_weight(rank: int) -> None:
    """torch promotes no float8; and what asks for a weight's dtype alone does not keep the merged one."""
    model, x = Cast(torch.float32), torch.randn(3, 6)
    model.layer.weight = nn.Parameter(model.layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    before = lyc_fx.splice(lyc_fx.capture(model, (x,)), many(layer=made("locon", EVEN, "magnitude", rank=rank)), 0.7)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1 and not misses(after) and not merged(after)
    wide = Cast()
    wide.load_state_dict(model.state_dict())
    lyc_fx.merge(wide, many(layer=made("locon", EVEN, "magnitude", rank=rank)), 0.7)
    torch.testing.assert_close(after(x), wide(x), rtol=1e-5, atol=1e-5)
