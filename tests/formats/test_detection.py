"""What tells the kernel-first layout from LyCORIS's: a statement, the shapes, or the other modules of the file."""

from itertools import product
from pathlib import Path
from random import Random

import oracle
import pytest
import torch
from layouts import delta, linear, random, up_of
from nets import VARIANTS, Variant, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.formats.nhwc import Nhwc

PORTED = [v for v in VARIANTS if v[0] in (LoCon, LoHa, LoKr) and "magnitude" not in v[1]]


@pytest.mark.parametrize("variant", PORTED, ids=variant_id)
def test_files_without_a_mark_are_read_by_their_shapes(variant: Variant) -> None:
    """Written in either layout, the effect that is read is the closed formula's: no weight here is square."""
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


def test_many_small_shapes_at_random() -> None:
    """A file of LyCORIS alone is never taken for another layout, however small its sizes; a stated one is read so."""
    choose, seen, unlike = Random(0), 0, 0
    for seed in range(900):
        shape = tuple(choose.randint(1, 5) for _ in range(choose.randint(1, 5)))
        adapter = random_for(choose.choice(VARIANTS), shape, rank=choose.randint(1, 5), dtype=torch.bfloat16, seed=seed)
        if adapter is None:
            continue
        seen, digest = seen + 1, one(adapter, "m").digest
        assert lyc_fx.load(dict(Lycoris().write(one(adapter, "m")).tensors)).digest == digest
        kernel_first = dict(Nhwc().write(one(adapter, "m")).tensors)
        assert lyc_fx.load(kernel_first, layout="nhwc").digest == digest
        unlike += lyc_fx.load(kernel_first, layout="torch").digest != digest
    assert seen > 400 and unlike > 100


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
    same = {"k.lokr_w1": random(2, 3), "k.lokr_w2": random(4, 4), "b.diff": random(3, 3), "n.w_norm": random(3)}
    assert up_of(lyc_fx.load(SQUARE | same)).shape == (5, 2)
    read = lyc_fx.load(SQUARE | same | linear((2, 5), (3, 2), "z"))
    assert up_of(read).shape == (2, 5)
    assert {e.module: e.adapter.name for e in read.entries} == {
        "m": "locon", "k": "lokr", "b": "full", "n": "norm", "z": "locon",
    }  # fmt: skip


def module(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    suffixes = {"up": "lora_up.weight", "mid": "lora_mid.weight", "down": "lora_down.weight"}
    return {f"m.{suffixes.get(name, name)}": random(*shape) for name, shape in shapes.items()}


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
    tensors = {"unet.x.lora_A.weight": random(2, 5), "unet.x.lora_B.weight": random(5, 2)}
    assert up_of(lyc_fx.load(tensors | linear((2, 5), (3, 2), "z")), "unet.x").shape == (5, 2)
    assert up_of(lyc_fx.load(tensors, layout="nhwc"), "unet.x").shape == (5, 2)


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
    with pytest.raises(BadAdapter, match=r"m: does not fit m.weight \(5, 3\): lora_up.weight is \(5, 2\)"):
        lyc_fx.merge(model, lyc_fx.load(linear((5, 2), (4, 3))))
