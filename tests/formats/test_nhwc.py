"""The kernel-first layout: every permutation, what tells it from LyCORIS's layout, and what is refused."""

from itertools import product
from pathlib import Path

import oracle
import pytest
import torch
from nets import VARIANTS, Variant, many, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.families import Additive
from lyc_fx.families.locon import LoCon
from lyc_fx.families.loha import LoHa
from lyc_fx.families.lokr import LoKr
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.formats.nhwc import Nhwc

SHAPES = ((20, 6), (15, 6, 3, 2), (10, 7, 5), (9, 4, 1, 3, 2), (15, 6, 1, 1), (9,))
# Every dimension differs: out 11, in 7, kernel 5×3, ranks 2 and 4 (p on the output side, q on the input side).
OUT, INN, H, W, P, Q = 11, 7, 5, 3, 2, 4


def ramp(*shape: int) -> Tensor:
    """Distinct values, exact in bfloat16's neighbour float64, none of them zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def written(adapter: object) -> dict[str, Tensor]:
    tensors = Nhwc().write(one(adapter, "m")).tensors  # type: ignore[arg-type]
    return {key.removeprefix("m."): tensor.double() for key, tensor in tensors.items()}


def rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).double()


def delta(tensors: dict[str, Tensor], shape: tuple[int, ...], layout: str | None = None) -> Tensor:
    """ΔW of the one module of these tensors, by the library's formula in float64."""
    [entry] = lyc_fx.load(tensors, layout=layout).entries  # type: ignore[arg-type]
    assert isinstance(entry.adapter, Additive)
    entry.adapter.fit(shape)
    return entry.adapter.to(torch.float64).delta(shape)


def test_locon_of_a_linear_layer() -> None:
    up, down = ramp(OUT, P), ramp(P, INN)
    stored = written(LoCon(up=up, down=down, alpha=3.0))
    assert torch.equal(stored["lora_down.weight"], torch.einsum("ri->ir", rounded(down)))
    assert torch.equal(stored["lora_up.weight"], torch.einsum("or->ro", rounded(up)))
    assert stored["alpha"] == 3


def test_locon_of_a_convolution() -> None:
    up, down = ramp(OUT, P, 1, 1), ramp(P, INN, H, W)
    stored = written(LoCon(up=up, down=down))
    assert torch.equal(stored["lora_down.weight"], torch.einsum("rihw->hwir", rounded(down)))
    assert torch.equal(stored["lora_up.weight"], torch.einsum("orhw->hwro", rounded(up)))
    assert stored["lora_down.weight"].shape == (H, W, INN, P) and stored["lora_up.weight"].shape == (1, 1, P, OUT)


def test_locon_with_a_core_has_the_input_rank_first() -> None:
    up, mid, down = ramp(OUT, P, 1, 1), ramp(P, Q, H, W), ramp(Q, INN, 1, 1)
    stored = written(LoCon(up=up, down=down, mid=mid))
    assert torch.equal(stored["lora_mid.weight"], torch.einsum("pqhw->hwqp", rounded(mid)))
    assert stored["lora_mid.weight"].shape == (H, W, Q, P)
    assert stored["lora_down.weight"].shape == (1, 1, INN, Q) and stored["lora_up.weight"].shape == (1, 1, P, OUT)


def test_loha() -> None:
    a, flat, kernel = ramp(OUT, P), ramp(P, INN * H * W), ramp(P, INN, H, W)
    stored = written(LoHa(w1_a=a, w1_b=flat, w2_a=a, w2_b=kernel))
    for name in ("hada_w1_a", "hada_w2_a"):
        assert torch.equal(stored[name], torch.einsum("or->ro", rounded(a)))
    assert torch.equal(stored["hada_w1_b"], torch.einsum("rx->xr", rounded(flat)))
    assert torch.equal(stored["hada_w2_b"], torch.einsum("rihw->hwir", rounded(kernel)))


def test_loha_with_cores_keeps_what_already_has_the_rank_first() -> None:
    t, a, b = ramp(P, Q, H, W), ramp(P, OUT), ramp(Q, INN)
    stored = written(LoHa(w1_a=a, w1_b=b, w2_a=2 * a, w2_b=-b, t1=t, t2=3 * t))
    assert torch.equal(stored["hada_w1_a"], rounded(a)) and torch.equal(stored["hada_w2_a"], rounded(2 * a))
    assert torch.equal(stored["hada_w1_b"], torch.einsum("qi->iq", rounded(b)))
    assert torch.equal(stored["hada_w2_b"], torch.einsum("qi->iq", rounded(-b)))
    assert torch.equal(stored["hada_t1"], torch.einsum("pqhw->hwqp", rounded(t)))
    assert torch.equal(stored["hada_t2"], torch.einsum("pqhw->hwqp", rounded(3 * t)))


def test_lokr_is_as_in_lycoris_but_for_w2_a_beside_a_core() -> None:
    w1, t, a, b = ramp(3, 7), ramp(P, Q, H, W), ramp(P, 5), ramp(Q, 6)
    stored = written(LoKr(w1=w1, w2_a=a, w2_b=b, t2=t))
    assert torch.equal(stored["lokr_w2_a"], torch.einsum("pk->kp", rounded(a)))
    for name, tensor in (("lokr_w1", w1), ("lokr_w2_b", b), ("lokr_t2", t)):
        assert torch.equal(stored[name], rounded(tensor))
    plain = {"w1_a": ramp(3, P), "w1_b": ramp(P, 7), "w2_a": ramp(5, P), "w2_b": ramp(P, 6, H, W)}
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


PORTED = [v for v in VARIANTS if v[0] in (LoCon, LoHa, LoKr) and "magnitude" not in v[1]]


@pytest.mark.parametrize("variant", PORTED, ids=variant_id)
def test_files_without_a_mark_are_read_by_their_shapes(variant: Variant) -> None:
    """Read as either layout, the effect is the closed formula's; only what `ambiguous` says needs to be told."""
    seen = 0
    for out, inner, rank, kernel in product((10, 21), (6, 7), (2, 3), ((), (1, 1), (3, 5), (5,))):
        shape = (out, inner, *kernel)
        adapter = random_for(variant, shape, rank=rank, alpha=5.0, dtype=torch.bfloat16, seed=seen)
        if adapter is None:
            continue
        seen += 1
        want = oracle.delta(adapter, shape)
        for format_ in (Lycoris(), Nhwc()):
            got = delta(dict(format_.write(one(adapter)).tensors), shape)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert seen >= 8


def linear(up: tuple[int, int], down: tuple[int, int], module: str = "m") -> dict[str, Tensor]:
    return {f"{module}.lora_up.weight": ramp(*up), f"{module}.lora_down.weight": ramp(*down)}


def up_of(adapters: AdapterSet, module: str = "m") -> Tensor:
    [adapter] = [e.adapter for e in adapters.entries if e.module == module]
    assert isinstance(adapter, LoCon)
    return adapter.up


SQUARE = linear((5, 2), (2, 5))
"""LyCORIS: out 5, rank 2, in 5. Kernel first: rank 5, out 2, in 2."""


def test_a_square_layer_alone_has_lycoris_s_layout_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    assert up_of(lyc_fx.load(SQUARE)).shape == (5, 2)
    assert up_of(lyc_fx.load(SQUARE, layout="torch")).shape == (5, 2)
    assert up_of(lyc_fx.load(SQUARE, layout="nhwc")).shape == (2, 5)
    path = tmp_path / "a.safetensors"
    save_file(SQUARE, path, {"lyc_fx.layout": "nhwc", "author": "x"})
    read = lyc_fx.load(path)
    assert up_of(read).shape == (2, 5) and read.metadata == {"author": "x"}
    assert up_of(lyc_fx.load(path, layout="torch")).shape == (5, 2)


def test_a_square_layer_follows_the_others_where_they_agree() -> None:
    nhwc, torch_ = linear((2, 5), (3, 2), "n"), linear((5, 2), (2, 3), "t")
    assert up_of(lyc_fx.load(SQUARE | nhwc)).shape == (2, 5)
    assert up_of(lyc_fx.load(SQUARE | torch_)).shape == (5, 2)
    mixed = lyc_fx.load(SQUARE | nhwc | torch_)
    assert [tuple(up_of(mixed, m).shape) for m in "mnt"] == [(5, 2), (5, 2), (5, 2)]
    assert torch.equal(up_of(mixed, "n"), nhwc["n.lora_up.weight"].t())
    assert torch.equal(up_of(mixed, "t"), torch_["t.lora_up.weight"])


def test_what_lies_alike_in_both_decides_nothing() -> None:
    same = {"k.lokr_w1": ramp(2, 3), "k.lokr_w2": ramp(4, 4), "b.diff": ramp(3, 3), "n.w_norm": ramp(3)}
    assert up_of(lyc_fx.load(SQUARE | same)).shape == (5, 2)
    read = lyc_fx.load(SQUARE | same | linear((2, 5), (3, 2), "z"))
    assert up_of(read).shape == (2, 5)
    assert {e.module: e.adapter.name for e in read.entries} == {
        "m": "locon", "k": "lokr", "b": "full", "n": "norm", "z": "locon",
    }  # fmt: skip


def module(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    suffixes = {"up": "lora_up.weight", "mid": "lora_mid.weight", "down": "lora_down.weight"}
    return {f"m.{suffixes.get(name, name)}": ramp(*shape) for name, shape in shapes.items()}


def sides(a: tuple[int, ...], b: tuple[int, ...], t: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
    both = {f"hada_w{side}_{name}": shape for side in "12" for name, shape in (("a", a), ("b", b))}
    return both if t is None else both | {"hada_t1": t, "hada_t2": t}


AMBIGUOUS: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
    "locon linear, out = in": (module(up=(5, 2), down=(2, 5)), module(up=(5, 2), down=(2, 6))),
    "locon 1×1, out = rank = 1": (
        module(up=(1, 1, 1, 1), down=(1, 6, 1, 1)),
        module(up=(2, 1, 1, 1), down=(1, 6, 1, 1)),
    ),
    "loha, out = in": (
        module(**sides(a=(5, 2), b=(2, 5))),
        module(**sides(a=(5, 2), b=(2, 6))),
    ),
    "loha core, rank = kernel = in": (
        module(**sides(t=(3,) * 4, a=(3, 5), b=(3, 3))),
        module(**sides(t=(3,) * 4, a=(3, 5), b=(3, 4))),
    ),
    "lokr core, rank = k": (
        module(lokr_w1=(2, 3), lokr_t2=(3, 3, 3, 3), lokr_w2_a=(3, 3), lokr_w2_b=(3, 4)),
        module(lokr_w1=(2, 3), lokr_t2=(3, 3, 3, 3), lokr_w2_a=(3, 5), lokr_w2_b=(3, 4)),
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_follows_a_kernel_first_module_and_a_near_miss_does_not(name: str) -> None:
    other = linear((2, 5), (3, 2), "other")
    for tensors, follows in zip(AMBIGUOUS[name], (True, False), strict=True):
        said = Lycoris().write(lyc_fx.load(tensors, layout="torch")).tensors
        for kernel_first, context in ((False, {}), (follows, other)):
            read = lyc_fx.load(tensors | context).select("m")
            got = Lycoris().write(read).tensors
            same = all(torch.equal(got[key], said[key]) for key in said)
            assert same is not kernel_first


def test_a_1x1_of_lycoris_does_not_pass_for_a_spatial_up_kernel() -> None:
    """Kernel first, these were a 3×3 kernel of one channel, whose up kernel varies: no adapter."""
    tensors = module(up=(3, 3, 1, 1), down=(3, 3, 1, 1))
    read = lyc_fx.load(tensors | linear((2, 5), (3, 2), "z"))
    assert torch.equal(up_of(read), tensors["m.lora_up.weight"])
    assert up_of(read, "z").shape == (5, 2)


def test_the_layout_concerns_lycoris_s_keys_alone() -> None:
    tensors = {"unet.x.lora_A.weight": ramp(2, 5), "unet.x.lora_B.weight": ramp(5, 2)}
    assert up_of(lyc_fx.load(tensors | linear((2, 5), (3, 2), "z")), "unet.x").shape == (5, 2)
    assert up_of(lyc_fx.load(tensors, layout="nhwc"), "unet.x").shape == (5, 2)


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
    down, tap = ramp(H, W, INN, rank), ramp(rank, OUT)
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
    downs, taps = (ramp(H, W, INN, P), -ramp(H, W, INN, P)), (ramp(P, OUT), ramp(P, OUT) + 1)
    ups = [tap.expand(H, W, P, OUT).clone() for tap in taps]
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    order = (ups[0], downs[0], ups[1], downs[1]) if crossed else (downs[0], ups[0], downs[1], ups[1])
    tensors = {f"m.{name}": tensor for name, tensor in zip(names, order, strict=True)}
    sides = [torch.einsum("hwir,ro->oihw", down, tap) for down, tap in zip(downs, taps, strict=True)]
    torch.testing.assert_close(delta(tensors, (OUT, INN, H, W)), sides[0] * sides[1])
    ups[1][1, 0, 0, 0] += 1
    with pytest.raises(BadAdapter, match="differs from tap to tap"):
        lyc_fx.load(tensors)


def test_a_statement_that_the_shapes_contradict_is_refused() -> None:
    with pytest.raises(BadAdapter, match=r'm: the factors do not meet in layout "nhwc": .*\(2, 3\).*layout="torch"'):
        lyc_fx.load(linear((5, 2), (2, 3)), layout="nhwc")


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAdapter, match="layout 'nchw' is not known: torch, nhwc"):
        lyc_fx.load(SQUARE, layout="nchw")  # type: ignore[arg-type]
    save_file(SQUARE, tmp_path / "a.safetensors", {"lyc_fx.layout": "blocked"})
    with pytest.raises(BadAdapter, match=r"a\.safetensors: layout 'blocked' is not known"):
        lyc_fx.load(tmp_path / "a.safetensors")


def test_factors_that_meet_in_neither_layout_keep_lycoris_s_message() -> None:
    model = nn.ModuleDict({"m": nn.Linear(3, 5)})
    with pytest.raises(BadAdapter, match=r"m: does not fit m.weight \(5, 3\): lora_up.weight as a matrix is \(5, 2\)"):
        lyc_fx.merge(model, lyc_fx.load(linear((5, 2), (4, 3))))


def test_scales_are_the_reference_s() -> None:
    for alpha, scale in ((None, 1.0), (3.0, 1.5)):
        adapter = LoCon(up=ramp(OUT, P), down=ramp(P, INN), alpha=alpha)
        assert lyc_fx.load(dict(Nhwc().write(one(adapter)).tensors)).entries[0].adapter.scale == scale
    full = LoKr(w1=ramp(2, 3), w2=ramp(5, 4), alpha=9.0)
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
    huge = LoCon(up=ramp(OUT, P) * 1e300, down=ramp(P, INN))
    with pytest.raises(Unsupported, match=r"(?s)1 factors.*m: lora_up.weight is beyond the range of bfloat16"):
        Nhwc().write(one(huge, "m"))
