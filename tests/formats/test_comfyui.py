"""What ComfyUI would make of the files that are written for it, and what is refused."""

from dataclasses import replace
from pathlib import Path

import comfyui
import oracle
import pytest
import torch
from layouts import random
from nets import VARIANTS, Variant, many, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.boft import BOFT
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.glora import GLoRA
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.algorithms.norm import Norm
from lyc_fx.algorithms.oft import DiagOFT
from lyc_fx.errors import Unsupported
from lyc_fx.formats.comfyui import Comfyui

SHAPES = ((20, 6), (15, 6, 3, 2), (10, 7, 5), (6, 4, 1, 3, 2), (14, 6, 1, 1), (9,))

PATH = "diffusion_model.middle.fc"


def written(adapter: Adapter) -> dict[str, Tensor]:
    tensors = Comfyui().write(one(adapter, PATH)).tensors
    assert all(key.startswith(f"{PATH}.") for key in tensors)
    return {key.removeprefix(f"{PATH}."): tensor for key, tensor in tensors.items()}


def refusal(adapter: Adapter, dims: int) -> str | None:
    """What ComfyUI cannot read of the random adapters, by the rules in the documentation."""
    factors = adapter.factors()
    if adapter.name in ("ia3", "tlora", "gain", "experts", "oft-input", "boft-input", "hra", "vera"):
        return "reads no"
    if adapter.name == "diag-oft" and "rescale" in factors:
        return "ignores the rescale"
    if dims != 4 and factors.keys() & {"mid", "t1"}:
        return "two kernel dimensions only"
    return None


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_comfyui_computes_what_is_meant_and_the_file_is_read_again(variant: Variant, tmp_path: Path) -> None:
    tried = 0
    for shape in SHAPES:
        adapter = random_for(variant, shape, rank=3, alpha=2.0, dtype=torch.float64, seed=tried)
        if adapter is None:
            continue
        tried += 1
        why = refusal(adapter, len(shape))
        if why is not None:
            with pytest.raises(Unsupported, match=rf"(?s)1 adapter cannot.*{PATH}: ComfyUI .*{why}"):
                Comfyui().write(one(adapter, PATH))
            continue
        weight = random(*shape)
        contents, path = Comfyui().write(replace(one(adapter, PATH), metadata={"a": "b"})), tmp_path / "a.safetensors"
        save_file(dict(contents.tensors), path, dict(contents.metadata))
        read = lyc_fx.load(path)
        [entry] = read.entries
        assert entry.module == PATH and read.metadata == {"a": "b"}
        want = oracle.adapted(adapter, weight, 1.0)
        torch.testing.assert_close(entry.adapter.apply(weight, 1.0), want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(comfyui.patched(written(adapter), weight), want, rtol=1e-6, atol=1e-6)
        again = Comfyui().write(read).tensors
        assert again.keys() == contents.tensors.keys()
        assert all(torch.equal(again[key], tensor) for key, tensor in contents.tensors.items())
    assert tried


def test_a_merge_of_what_was_written() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(6, 15), "conv": nn.Conv2d(6, 10, (3, 2))}).double()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fc = random_for((LoHa, LoHa.layouts[0]), (15, 6), dtype=torch.float64)
    conv = random_for((LoCon, LoCon.layouts[1]), (10, 6, 3, 2), dtype=torch.float64)
    assert fc is not None and conv is not None
    pair = many(**{"diffusion_model.fc": fc, "diffusion_model.conv": conv})
    report = lyc_fx.merge(model, lyc_fx.load(dict(Comfyui().write(pair).tensors)), 0.7)
    assert [(r.target, r.algorithm, r.scale) for r in report.applied] == [
        ("fc.weight", "loha", 2 / 3),
        ("conv.weight", "locon", 2 / 3),
    ]
    for name, adapter in (("fc", fc), ("conv", conv)):
        want = oracle.adapted(adapter, base[f"{name}.weight"], 0.7)
        torch.testing.assert_close(model.get_parameter(f"{name}.weight").detach(), want, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.get_parameter(f"{name}.bias"), base[f"{name}.bias"])


def test_the_oracle_shows_what_is_rewritten() -> None:
    """Near misses: as LyCORIS writes them, ComfyUI would compute something else, or nothing."""
    weight = random(8, 6)
    zero = LoCon(up=random(8, 2), down=random(2, 6), alpha=0.0)
    kernel = random(6, 6, 5)
    wide = LoKr(w1=random(2, 3), w2=random(3, 2, 5))
    bound = DiagOFT(blocks=random(2, 4, 4), alpha=0.05)
    unbound = BOFT(blocks=random(2, 2, 4, 4))
    for adapter, base in ((zero, weight), (wide, kernel), (bound, weight)):
        want = oracle.adapted(adapter, base, 1.0)
        torch.testing.assert_close(comfyui.patched(written(adapter), base), want, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(comfyui.patched(adapter.written("weight"), base), want, rtol=1e-3)
    assert "alpha" not in written(zero) and written(wide)["lokr_w2"].shape == (3, 10)
    core = LoKr(w1=random(2, 3), w2_a=random(2, 5), w2_b=random(2, 4), t2=random(2, 2, 3, 3), alpha=3.0)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        comfyui.patched(core.written("weight"), random(10, 12, 3, 3))
    with pytest.raises(TypeError, match="NoneType"):
        comfyui.patched(unbound.written("weight"), weight)
    want = oracle.adapted(unbound, weight, 1.0)
    torch.testing.assert_close(comfyui.patched(written(unbound), weight), want, rtol=1e-6, atol=1e-6)


def test_a_magnitude_per_output_is_where_comfyui_differs() -> None:
    """Written as it is, and said in the documentation; per input it agrees (the test over all families)."""
    adapter, weight = LoCon(up=random(8, 2), down=random(2, 6), magnitude=random(8, 1)), random(8, 6)
    stored, want = written(adapter), oracle.adapted(adapter, weight, 1.0)
    assert not torch.allclose(comfyui.patched(stored, weight), want, rtol=1e-2)
    [entry] = lyc_fx.load({f"x.{suffix}": tensor for suffix, tensor in stored.items()}).entries
    torch.testing.assert_close(entry.adapter.apply(weight, 1.0), want)


@pytest.mark.parametrize("bound", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("blocks", [(2, 4, 4), (2, 2, 4, 4)], ids=["diag-oft", "boft"])
def test_a_bound_is_worked_into_the_blocks(blocks: tuple[int, ...], bound: float) -> None:
    family = DiagOFT if len(blocks) == 3 else BOFT
    adapter, weight = family(blocks=random(*blocks), alpha=bound), random(8, 6)
    stored = written(adapter)
    assert stored["alpha"] == 0
    assert torch.equal(stored["oft_blocks"], adapter.blocks) is (bound == 5.0)
    want = oracle.adapted(adapter, weight, 1.0)
    torch.testing.assert_close(comfyui.patched(stored, weight), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3, 2), (4, 4), (4, 4, 1, 1)])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_glora_of_both_orientations(old: bool, shape: tuple[int, ...]) -> None:
    """`A = a1 @ a2` or, in old files, `A = a2 @ a1`; likewise B. At rank 2 both read right, in = out or not."""
    out, inner, *kernel = shape
    ones, weight = [1] * len(kernel), random(*shape)
    a, a_, b, b_ = random(inner, 2, *ones), random(2, inner, *ones), random(out, 2, *ones), random(2, inner, *kernel)
    pairs = {"a1": a_, "a2": a, "b1": b_, "b2": b} if old else {"a1": a, "a2": a_, "b1": b, "b2": b_}
    tensors = {f"{PATH}.{name}.weight": tensor for name, tensor in pairs.items()} | {f"{PATH}.alpha": torch.tensor(3.0)}
    mixed = torch.einsum("oi...,ij->oj...", weight, a.flatten(1) @ a_.flatten(1))
    want = weight + 0.7 * 1.5 * (mixed + (b.flatten(1) @ b_.flatten(1)).reshape(shape))
    [entry] = lyc_fx.load(tensors).entries
    assert entry.adapter.variant == ("old orientation" if old else "")
    entry.adapter.fit(shape)
    torch.testing.assert_close(entry.adapter.apply(weight, 0.7), want)
    stored = written(entry.adapter)
    assert torch.equal(stored["a1.weight"], a)  # in the new orientation
    full = oracle.adapted(GLoRA(a1=a, a2=a_, b1=b, b2=b_, alpha=3.0), weight, 1.0)
    torch.testing.assert_close(comfyui.patched(stored, weight), full)


def test_glora_that_is_square_throughout_is_new_here_and_refused_for_comfyui() -> None:
    a1, a2, b1, b2 = (random(3, 3) + n for n in range(4))
    [entry] = lyc_fx.load(
        {f"x.{n}.weight": t for n, t in zip(("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True)}
    ).entries
    weight = random(3, 3)
    torch.testing.assert_close(entry.adapter.apply(weight, 0.5), weight + 0.5 * (weight @ a1 @ a2 + b1 @ b2))
    with pytest.raises(Unsupported, match="rank = in = out = 3 in its old orientation"):
        Comfyui().write(one(entry.adapter))


UNREADABLE: dict[str, tuple[Adapter, str]] = {
    "ranks of a core": (
        LoCon(up=random(5, 2, 1, 1), mid=random(2, 4, 3, 3), down=random(4, 3, 1, 1)),
        r"of equal ranks only, not \(2, 4, 3, 3\)",
    ),
    "ranks of lokr": (
        LoKr(w1_a=random(2, 2), w1_b=random(2, 3), w2_a=random(5, 3), w2_b=random(3, 4), alpha=1.0),
        "the rank of w2, 3, and LyCORIS by that of w1, 2",
    ),
    "magnitude of loha": (
        LoHa(w1_a=random(5, 2), w1_b=random(2, 3), w2_a=random(5, 2), w2_b=random(2, 3), magnitude=random(5)),
        "a dora_scale of one dimension",
    ),
    "rescale of boft": (BOFT(blocks=random(2, 2, 4, 4), rescale=random(8)), r"a rescale of \(out, 1…\) only"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_comfyui_would_read_wrong_is_refused(name: str) -> None:
    adapter, message = UNREADABLE[name]
    with pytest.raises(Unsupported, match=message):
        Comfyui().write(one(adapter))


def test_all_that_is_refused_is_listed() -> None:
    first, second = (random_for((f, f.layouts[0]), (6, 4)) for f, _ in VARIANTS if f.name in ("ia3", "tlora"))
    assert first is not None and second is not None
    with pytest.raises(Unsupported, match=r"(?s)2 adapters.*a: ComfyUI reads no .*b: ComfyUI reads no "):
        Comfyui().write(many(a=first, b=second))


def test_two_changes_of_one_weight_are_refused() -> None:
    up, down = random(5, 2), random(2, 3)
    both = tuple(Entry("x", "weight", a, ("k",)) for a in (LoCon(up=up, down=down), Full(diff=random(5, 3))))
    with pytest.raises(Unsupported, match="x: ComfyUI keeps one change of each weight"):
        Comfyui().write(AdapterSet(both))
    other = replace(both[1], leaf="bias", adapter=Full(diff=random(5)))
    assert "x.diff_b" in Comfyui().write(AdapterSet((both[0], other))).tensors


def test_a_magnitude_of_one_dimension_gets_the_weight_s() -> None:
    """As PEFT stores it; ComfyUI would multiply the columns."""
    for down, shape in ((random(2, 5), (5, 1)), (random(2, 4, 3, 1), (5, 1, 1, 1))):
        adapter = LoCon(up=random(5, 2), down=down, magnitude=random(5))
        stored = written(adapter)["dora_scale"]
        assert stored.shape == shape and torch.equal(stored.flatten(), random(5))


def test_a_norm_s_bias_without_its_weight_is_written_as_a_difference() -> None:
    bias = Entry("norm", "bias", Norm(difference=random(5)), ("k",))
    weight = Entry("norm", "weight", Norm(difference=random(5) + 1), ("k",))
    assert list(Comfyui().write(AdapterSet((bias,))).tensors) == ["norm.diff_b"]
    assert sorted(Comfyui().write(AdapterSet((weight, bias))).tensors) == ["norm.b_norm", "norm.w_norm"]
