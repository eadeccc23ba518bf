"""Where adapters meet weights: everything is checked, and listed, before anything is changed."""

import copy

import pytest
import torch
from nets import CASES, Case, certain, many, one, pairs, variant_id
from torch import nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.ia3 import IA3
from lyc_fx.algorithms.oft_input import InputOFT
from lyc_fx.errors import BadAdapter, Unsupported

LOCON = next(f for f in FAMILIES if f.name == "locon")


def plain(*shape: int, seed: int = 0) -> Adapter:
    return random_adapter(LOCON, shape, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(5, 7), "c": nn.Conv2d(3, 5, 3)})


def refused(net: nn.Module, adapters: lyc_fx.AdapterSet, message: str) -> str:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(BadAdapter, match=message) as caught:
        lyc_fx.merge(net, adapters, 0.7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    return str(caught.value)


def test_every_fault_is_listed_and_nothing_is_changed() -> None:
    text = refused(
        model(),
        many(lycoris_a=plain(5, 3), lycoris_b=plain(9, 5), lycoris_c_=plain(5, 3, 3, 3), lycoris_zz=plain(1, 1)),
        "3 adapters cannot be applied",
    )
    assert "lycoris_b: does not fit b.weight (7, 5): lora_up.weight is (9, 2), the weight asks" in text
    assert "lycoris_c_: no such weight in the model; nearest: c.weight" in text
    assert "lycoris_zz: no such weight in the model" in text
    assert "strict=False" in text


def test_the_part_for_another_model_can_be_left_out() -> None:
    adapters = many(lora_unet_a=plain(5, 3), lora_te_x=plain(5, 3), lora_te_y=plain(5, 3))
    text = refused(model(), adapters, "2 adapters cannot be applied")
    assert 'adapters.exclude("lora_te_*")' in text
    assert len(lyc_fx.merge(model(), adapters.exclude("lora_te_*")).applied) == 1
    assert len(lyc_fx.merge(model(), adapters.select("lora_unet_*")).applied) == 1


def test_one_weight_named_twice_in_a_file_is_refused() -> None:
    refused(model(), many(lycoris_a=plain(5, 3), lora_unet_a=plain(5, 3)), "a.weight is named twice in this file")


def test_an_integer_weight_is_refused() -> None:
    net = nn.Module()
    net.register_parameter("weight", nn.Parameter(torch.ones(5, 3, dtype=torch.int8), requires_grad=False))
    refused(net, one(plain(5, 3), "lycoris_"), "stored as torch.int8; adapters need a floating-point weight")


def test_strengths_must_be_finite_and_stacks_well_formed() -> None:
    with pytest.raises(BadAdapter, match="strength nan is not finite"):
        lyc_fx.merge(model(), one(plain(5, 3), "lycoris_a"), float("nan"))


def test_meta_weights_are_refused() -> None:
    with torch.device("meta"):
        net = nn.ModuleDict({"a": nn.Linear(3, 5)})
    with pytest.raises(Unsupported, match=r"a\.weight is on the meta device"):
        lyc_fx.merge(net, one(plain(5, 3), "lycoris_a"))


def _seen(adapter: Adapter, shape: tuple[int, ...]) -> range:
    """The dimensions that a family's factors have to fit: rotations and IA3 touch one side alone."""
    if isinstance(adapter, IA3) and adapter.on_input:
        return range(1, 2)
    if isinstance(adapter, (InputOFT, HRA)):
        return range(1, len(shape))
    return range(1) if isinstance(adapter, (IA3, Orthogonal)) else range(len(shape))


@pytest.mark.parametrize(("variant", "case"), pairs(CASES), ids=variant_id)
def test_an_adapter_for_another_shape_never_fits(variant, case: Case) -> None:  # type: ignore[no-untyped-def]
    """Grow each dimension of the weight in turn: the adapter made for the old shape is refused."""
    shape = case.logical
    adapter = certain(variant, shape)
    adapter.fit(shape)
    for position in _seen(adapter, shape):
        other = [size + (i == position) for i, size in enumerate(shape)]
        with pytest.raises(BadAdapter):
            adapter.fit(other)
    turned = (*shape[:2], *reversed(shape[2:]))
    if turned != shape and any(tuple(f.shape[2:]) == shape[2:] for f in adapter.factors().values()):
        with pytest.raises(BadAdapter):
            adapter.fit(turned)
    if len(shape) > 1:
        with pytest.raises(BadAdapter):
            adapter.fit(shape[:1])


def test_the_report_says_what_was_applied() -> None:
    report = lyc_fx.merge(model(), many(lycoris_a=plain(5, 3), lycoris_c=plain(5, 3, 3, 3)), 0.7)
    data = report.to_dict()
    assert data["applied"][0] == {
        "target": "a.weight",
        "module": "lycoris_a",
        "source": "test.safetensors",
        "algorithm": "locon",
        "variant": "",
        "rank": 2,
        "alpha": 3.0,
        "scale": 1.5,
        "strength": 0.7,
        "shape": (5, 3),
        "rows": None,
        "keys": ("lycoris_a.factors",),
    }
    found = [f"{100 * report.changes[name]:.3g} %" for name in ("a.weight", "c.weight")]
    width = max(6, *map(len, found))
    assert str(report).splitlines() == [
        f"weight    shape    algorithm  rank  alpha  scale  strength  {'change':{width}}  kept",
        f"a.weight  5×3      locon      2     3      1.5    0.7       {found[0]:{width}}  100 %",
        f"c.weight  5×3×3×3  locon      2     3      1.5    0.7       {found[1]:{width}}  100 %",
        "2 adapters on 2 weights, 0 keys unused",
        "kept: 100 % of the change",
    ]
