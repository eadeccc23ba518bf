"""Every way in which a LyCORIS or kohya file can be wrong, and what is said of it."""

from pathlib import Path

import pytest
import torch
from layouts import keys
from safetensors.torch import save_file
from torch import Tensor

import lyc_fx
from lyc_fx.errors import BadAdapter, BadFile

BROKEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing factor": ({"lycoris_fc.lora_up.weight": torch.ones(5, 2)}, r"lycoris_fc: locon without lora_down.weight"),
    "missing loha factor": (
        {f"x.hada_{n}": torch.ones(2, 2) for n in ("w1_a", "w1_b", "w2_a")},
        r"x: loha without hada_w2_b is not complete",
    ),
    "one core of two": (
        {f"x.hada_{n}": torch.ones(2, 2) for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1")},
        "hada_t",
    ),
    "full and decomposed": (
        {f"x.lokr_{n}": torch.ones(2, 2) for n in ("w1", "w1_a", "w1_b", "w2")},
        r"x: lokr with",
    ),
    "non-finite factor": (
        keys() | {"lycoris_fc.lora_up.weight": torch.full((5, 2), float("nan"))},
        r"lora_up.weight holds 10 values that are not finite",
    ),
    "non-finite alpha": (keys() | {"lycoris_fc.alpha": torch.tensor(float("inf"))}, r"lycoris_fc: alpha is inf"),
    "alpha of two": (keys() | {"lycoris_fc.alpha": torch.ones(2)}, r"alpha: a number is expected, not 2 values"),
    "alpha alone": ({"lycoris_fc.alpha": torch.tensor(1.0)}, "there is an alpha, but no factor"),
    "two algorithms": (keys() | {"lycoris_fc.lokr_w1": torch.ones(2, 2)}, "several algorithms"),
    "rank 0": (
        {"x.lora_up.weight": torch.ones(5, 0), "x.lora_down.weight": torch.ones(0, 3)},
        r"lora_up.weight is empty",
    ),
    "no adapter": ({"fc.weight": torch.ones(5, 3)}, r"none of its keys \(1\) is of a known adapter format"),
    "nothing": ({}, "it holds no tensor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_refused(name: str) -> None:
    tensors, message = BROKEN[name]
    with pytest.raises(BadAdapter, match=message):
        lyc_fx.load(tensors)


def test_all_faults_are_listed_at_once() -> None:
    tensors = {f"lycoris_{n}.lora_up.weight": torch.ones(5, 2) for n in "abc"}
    with pytest.raises(BadAdapter, match=r"(?s)3 modules cannot be used:.*lycoris_a.*lycoris_b.*lycoris_c"):
        lyc_fx.load(tensors)


def test_an_unread_key_is_refused_unless_not_strict() -> None:
    adapters = lyc_fx.load(keys() | {"bundle_emb.x.string_to_param": torch.ones(1)})
    assert adapters.unread == ("bundle_emb.x.string_to_param",)
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 5)})
    before = model["fc"].weight.clone()
    with pytest.raises(BadAdapter, match=r"bundle_emb.x.string_to_param: no format reads this key"):
        lyc_fx.merge(model, adapters)
    assert torch.equal(model["fc"].weight, before)
    assert lyc_fx.merge(model, adapters, strict=False).unused == ("bundle_emb.x.string_to_param",)


def test_unreadable_files(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file(keys(), good)
    pickle = tmp_path / "pickle.safetensors"
    torch.save(keys(), pickle)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-9])
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for path, message in {
        tmp_path / "absent.safetensors": "there is no such file",
        tmp_path: "is a directory",
        pickle: "is a pickle",
        cut: "not a whole safetensors file",
        empty: "not a whole safetensors file",
        huge: "not a whole safetensors file",
    }.items():
        with pytest.raises(BadFile, match=message) as caught:
            lyc_fx.load(path)
        assert str(path) in str(caught.value)


def test_a_bias_that_the_layer_does_not_have_is_refused() -> None:
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 5, bias=False)})
    with pytest.raises(BadAdapter, match="lycoris_fc: no such bias in the model"):
        lyc_fx.merge(model, lyc_fx.load({"lycoris_fc.diff": torch.ones(5, 3), "lycoris_fc.diff_b": torch.ones(5)}))


def test_a_checkpoint_is_no_adapter() -> None:
    with pytest.raises(BadAdapter, match=r"none of its keys \(2\) is of a known adapter format"):
        lyc_fx.load({"fc.weight": torch.ones(5, 3), "fc.bias": torch.ones(5)})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.bias_values": torch.ones(1)}, "a sparse residual without bias_indices, bias_size is not complete"),
        (
            {
                "x.bias_indices": torch.tensor([[9], [0]]),
                "x.bias_values": torch.ones(1),
                "x.bias_size": torch.tensor([5, 3]),
            },
            r"do not lie within bias_size \(5, 3\)",
        ),
        ({"x.rescale": torch.ones(5, 1)}, "rescale without other factors is not complete"),
        ({"x.dora_scale": torch.ones(5, 1)}, "dora_scale without other factors is not complete"),
        ({"x.on_input": torch.tensor(1)}, "ia3 without weight is not complete"),
        ({"x.diff": torch.ones(2), "x.w_norm": torch.ones(2)}, "several algorithms"),
    ],
)
def test_what_is_incomplete_is_said(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadAdapter, match=message):
        lyc_fx.load(tensors)
