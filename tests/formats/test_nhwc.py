"""The kernel-first layout: every permutation, round trips, spatial up kernels, and storage in bfloat16."""

from pathlib import Path

import oracle
import pytest
import torch
from layouts import delta, linear, random, up_of
from nets import VARIANTS, Variant, many, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.formats.nhwc import Nhwc

SHAPES = ((20, 6), (15, 6, 3, 2), (10, 7, 5), (9, 4, 1, 3, 2), (15, 6, 1, 1), (9,))
# Every dimension differs: out 11, in 7, kernel 5×3, ranks 2 and 4 (p on the output side, q on the input side).
OUT, INN, H, W, P, Q = 11, 7, 5, 3, 2, 4


def written(adapter: object) -> dict[str, Tensor]:
    tensors = Nhwc().write(one(adapter, "m")).tensors  # type: ignore[arg-type]
    return {key.removeprefix("m."): tensor.double() for key, tensor in tensors.items()}


def rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).double()


def test_locon_of_a_linear_layer() -> None:
    up, down = random(OUT, P), random(P, INN)
    stored = written(LoCon(up=up, down=down, alpha=3.0))
    assert torch.equal(stored["lora_down.weight"], torch.einsum("ri->ir", rounded(down)))
    assert torch.equal(stored["lora_up.weight"], torch.einsum("or->ro", rounded(up)))
    assert stored["alpha"] == 3


def test_locon_of_a_convolution() -> None:
    up, down = random(OUT, P, 1, 1), random(P, INN, H, W)
    stored = written(LoCon(up=up, down=down))
    assert torch.equal(stored["lora_down.weight"], torch.einsum("rihw->hwir", rounded(down)))
    assert torch.equal(stored["lora_up.weight"], torch.einsum("orhw->hwro", rounded(up)))
    assert stored["lora_down.weight"].shape == (H, W, INN, P) and stored["lora_up.weight"].shape == (1, 1, P, OUT)


def test_locon_with_a_core_has_the_input_rank_first() -> None:
    up, mid, down = random(OUT, P, 1, 1), random(P, Q, H, W), random(Q, INN, 1, 1)
    stored = written(LoCon(up=up, down=down, mid=mid))
    assert torch.equal(stored["lora_mid.weight"], torch.einsum("pqhw->hwqp", rounded(mid)))
    assert stored["lora_mid.weight"].shape == (H, W, Q, P)
    assert stored["lora_down.weight"].shape == (1, 1, INN, Q) and stored["lora_up.weight"].shape == (1, 1, P, OUT)


def test_loha() -> None:
    a, flat, kernel = random(OUT, P), random(P, INN * H * W), random(P, INN, H, W)
    stored = written(LoHa(w1_a=a, w1_b=flat, w2_a=a, w2_b=kernel))
    for name in ("hada_w1_a", "hada_w2_a"):
        assert torch.equal(stored[name], torch.einsum("or->ro", rounded(a)))
    assert torch.equal(stored["hada_w1_b"], torch.einsum("rx->xr", rounded(flat)))
    assert torch.equal(stored["hada_w2_b"], torch.einsum("rihw->hwir", rounded(kernel)))


def test_loha_with_cores_keeps_what_already_has_the_rank_first() -> None:
    t, a, b = random(P, Q, H, W), random(P, OUT), random(Q, INN)
    stored = written(LoHa(w1_a=a, w1_b=b, w2_a=2 * a, w2_b=-b, t1=t, t2=3 * t))
    assert torch.equal(stored["hada_w1_a"], rounded(a)) and torch.equal(stored["hada_w2_a"], rounded(2 * a))
    assert torch.equal(stored["hada_w1_b"], torch.einsum("qi->iq", rounded(b)))
    assert torch.equal(stored["hada_w2_b"], torch.einsum("qi->iq", rounded(-b)))
    assert torch.equal(stored["hada_t1"], torch.einsum("pqhw->hwqp", rounded(t)))
    assert torch.equal(stored["hada_t2"], torch.einsum("pqhw->hwqp", rounded(3 * t)))


def test_lokr_is_as_in_lycoris_but_for_w2_a_beside_a_core() -> None:
    w1, t, a, b = random(3, 7), random(P, Q, H, W), random(P, 5), random(Q, 6)
    stored = written(LoKr(w1=w1, w2_a=a, w2_b=b, t2=t))
    assert torch.equal(stored["lokr_w2_a"], torch.einsum("pk->kp", rounded(a)))
    for name, tensor in (("lokr_w1", w1), ("lokr_w2_b", b), ("lokr_t2", t)):
        assert torch.equal(stored[name], rounded(tensor))
    plain = {"w1_a": random(3, P), "w1_b": random(P, 7), "w2_a": random(5, P), "w2_b": random(P, 6, H, W)}
    stored = written(LoKr(**plain))
    assert all(torch.equal(stored[f"lokr_{name}"], rounded(tensor)) for name, tensor in plain.items())


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_round_trip_in_every_family_and_shape(variant: Variant, tmp_path: Path) -> None:
    tried = 0
    for shape in SHAPES:
        adapter = random_for(variant, shape, rank=2, alpha=3.0, dtype=torch.bfloat16, seed=tried)
        if adapter is None:
            continue
        tried += 1
        contents, path = Nhwc().write(one(adapter)), tmp_path / f"{tried}.safetensors"
        save_file(dict(contents.tensors), path, dict(contents.metadata))
        read = lyc_fx.load(path)
        assert read.digest == one(adapter).digest, shape
        assert read.entries[0].adapter.structure() == adapter.structure()
        assert read.metadata == {}
        again = Nhwc().write(read)
        assert again.metadata == contents.metadata and set(again.tensors) == set(contents.tensors)
        for key, tensor in contents.tensors.items():
            assert again.tensors[key].dtype == tensor.dtype and torch.equal(again.tensors[key], tensor)
    assert tried


def test_a_merge_from_a_kernel_first_file_is_the_closed_formula() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(6, 15), "conv": nn.Conv2d(6, 10, (3, 2), stride=2, padding=1)}).double()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    core = LoCon.layouts[1]
    fc = random_for((LoHa, LoHa.layouts[0]), (15, 6), alpha=2.0, dtype=torch.bfloat16)
    conv = random_for((LoCon, core), (10, 6, 3, 2), alpha=2.0, dtype=torch.bfloat16)
    assert fc is not None and conv is not None
    adapters = lyc_fx.load(dict(Nhwc().write(many(lycoris_fc=fc, lycoris_conv=conv)).tensors))
    report = lyc_fx.merge(model, adapters, 0.7)
    assert [(row.target, row.algorithm, row.scale) for row in report.applied] == [
        ("fc.weight", "loha", 2 / 3),
        ("conv.weight", "locon", 2 / 3),
    ]
    for name, adapter in (("fc", fc), ("conv", conv)):
        want = oracle.adapted(adapter, base[f"{name}.weight"], 0.7)
        torch.testing.assert_close(model.get_parameter(f"{name}.weight").detach(), want, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.get_parameter(f"{name}.bias"), base[f"{name}.bias"])


@pytest.mark.parametrize("rank", [2, 7])
def test_a_spatial_up_kernel_that_is_constant_is_the_reference_s_1x1(rank: int) -> None:
    down, tap = random(H, W, INN, rank), random(rank, OUT)
    up = tap.expand(H, W, rank, OUT).clone()
    want = 1.5 / rank * torch.einsum("hwir,ro->oihw", down, tap)
    tensors = {"m.lora_down.weight": down, "m.lora_up.weight": up, "m.alpha": torch.tensor(1.5)}
    torch.testing.assert_close(delta(tensors, (OUT, INN, H, W)), want)
    assert up_of(lyc_fx.load(tensors)).shape == (OUT, rank, 1, 1)
    up[0, 1, 0, 0] += 0.125
    with pytest.raises(BadAdapter, match=r"(?s)m: .*lora_up.weight differs from tap to tap.*two readings"):
        lyc_fx.load(tensors)


@pytest.mark.parametrize("crossed", [False, True], ids=["w_b is down", "w_b is up"])
def test_spatial_loha(crossed: bool) -> None:
    downs, taps = (random(H, W, INN, P), -random(H, W, INN, P)), (random(P, OUT), random(P, OUT) + 1)
    ups = [tap.expand(H, W, P, OUT).clone() for tap in taps]
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    order = (ups[0], downs[0], ups[1], downs[1]) if crossed else (downs[0], ups[0], downs[1], ups[1])
    tensors = {f"m.{name}": tensor for name, tensor in zip(names, order, strict=True)}
    sides = [torch.einsum("hwir,ro->oihw", down, tap) for down, tap in zip(downs, taps, strict=True)]
    torch.testing.assert_close(delta(tensors, (OUT, INN, H, W)), sides[0] * sides[1])
    ups[1][1, 0, 0, 0] += 1
    with pytest.raises(BadAdapter, match="differs from tap to tap"):
        lyc_fx.load(tensors)


def test_scales_are_the_reference_s() -> None:
    for alpha, scale in ((None, 1.0), (3.0, 1.5)):
        adapter = LoCon(up=random(OUT, P), down=random(P, INN), alpha=alpha)
        assert lyc_fx.load(dict(Nhwc().write(one(adapter)).tensors)).entries[0].adapter.scale == scale
    full = LoKr(w1=random(2, 3), w2=random(5, 4), alpha=9.0)
    assert lyc_fx.load(dict(Nhwc().write(one(full)).tensors)).entries[0].adapter.scale == 1
    with pytest.warns(UserWarning, match="alpha is 0"):
        zero = linear((P, OUT), (INN, P)) | {"m.alpha": torch.tensor(0.0)}
        assert lyc_fx.load(zero).entries[0].adapter.scale == 1


def test_storage_is_bfloat16_rounded_to_nearest() -> None:
    value = torch.tensor([[1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-8]], dtype=torch.float64)  # above a tie; a tie, to even
    contents = Nhwc().write(one(LoCon(up=value.t(), down=value[:, :1], alpha=0.1), "m"))
    assert contents.tensors["m.lora_up.weight"].dtype == torch.bfloat16
    assert contents.tensors["m.lora_up.weight"].tolist() == [[1 + 2.0**-7, 1.0]]
    assert contents.tensors["m.alpha"].dtype == torch.float32
    huge = LoCon(up=random(OUT, P) * 1e300, down=random(P, INN))
    with pytest.raises(Unsupported, match=r"(?s)1 factors.*m: lora_up.weight is beyond the range of bfloat16"):
        Nhwc().write(one(huge, "m"))
