"""Models of diffusers and transformers, as their libraries build them: with caches and output classes."""

import pytest
import torch

import lyc_fx
from tests.zoo import diffusers_models, transformers_models
from tests.zoo.case import Case
from tests.zoo.roads import check


@pytest.mark.parametrize("case", [*diffusers_models.CASES, *transformers_models.CASES], ids=str)
def test_library_model(case: Case) -> None:
    model = case.model()
    check(case, model, lyc_fx.capture(model, (), case.call(0), case.shapes, check=True))


def test_timm_model() -> None:
    timm = pytest.importorskip("timm")

    def inputs(size: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(2 + size, 3, 32, 32)}

    case = Case(
        "timm vit",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=4),
        inputs,
        {"x": "batch _ _ _"},
    )
    model = case.model()
    check(case, model, lyc_fx.capture(model, (), case.call(0), case.shapes, check=True))
