"""One file for each way in which a file once brought about another error than ours, or waited, or took all memory."""

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import kinds
from hostile.draft import Draft, drafted
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.errors import BadAdapter, BadFile, LycFxError
from lyc_fx.naming import Names, Piece

LORA = {"base_model.model.fc.lora_A.weight": torch.ones(1, 4), "base_model.model.fc.lora_B.weight": torch.ones(6, 1)}
EMBEDDING = "base_model.model.fc.lora_embedding"
IA3 = {"base_model.model.fc.ia3_l": torch.ones(1, 4)}


def refused(path: Path | str, kind: type[LycFxError], message: str) -> None:
    started = time.perf_counter()
    with pytest.raises(kind, match=message):
        lyc_fx.load(path)
    assert time.perf_counter() - started < 5


def saved(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "x.safetensors", metadata)
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([0, 2**63], "too large"),
        ([2**64 - 1, 0], "too large"),
        ([1] * 65, "65 dimensions"),
        ([1] * 10**5, "100000 dim"),
    ],
)
def test_shapes_beyond_torch(shape: list[int], message: str, tmp_path: Path) -> None:
    size = 0 if 0 in shape else 4
    draft = Draft((("fc.diff", {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}),), bytes(size))
    path = draft.written(tmp_path / "x")
    refused(path, BadFile, message)
    with pytest.raises(BadFile, match=message):
        lyc_fx.fold_checkpoint(path, lyc_fx.load({"fc.diff": torch.ones(1)}), tmp_path / "out.safetensors")


@pytest.mark.parametrize("code", ["F4", "F6_E2M3"])
def test_packed_dtypes(code: str, tmp_path: Path) -> None:
    size = 16 if code == "F4" else 24
    draft = Draft((("fc.diff", {"dtype": code, "shape": [8, 4], "data_offsets": [0, size]}),), bytes(size))
    refused(draft.written(tmp_path / "x"), BadFile, f"fc.diff is stored as {code}")


@pytest.mark.parametrize(
    "size", [[2**20, 2**20], [2**62, 2**62], [-1, -1], [float("nan"), 4.0], [float("inf"), 4.0], [1j, 1j], [0.5, 2.0]]
)
def test_a_sparse_residual_of_terabytes(size: list[Any], tmp_path: Path) -> None:
    residual = {
        "fc.bias_indices": torch.tensor([[0], [0]]),
        "fc.bias_values": torch.ones(1),
        "fc.bias_size": torch.tensor(size),
    }
    refused(saved(tmp_path, residual), BadAdapter, "bias_size")


def test_a_sparse_residual_of_matrices(tmp_path: Path) -> None:
    residual = {
        "fc.bias_indices": torch.tensor([[0], [0]]),
        "fc.bias_values": torch.ones(1, 1, 1),
        "fc.bias_size": torch.tensor([2, 2]),
    }
    refused(saved(tmp_path, residual), BadAdapter, "not a list of values")


def test_a_sparse_residual_of_whole_numbers(tmp_path: Path) -> None:
    residual = {
        "fc.bias_indices": torch.tensor([[0], [0]]),
        "fc.bias_values": torch.ones(1, dtype=torch.int32),
        "fc.bias_size": torch.tensor([2, 2]),
    }
    refused(saved(tmp_path, residual), BadAdapter, "bias_values is stored as torch.int32")


CONFIGURATIONS = {
    "": BadFile, "[]": BadFile, "[" * 10**5: BadFile, '{"a":' * 10**5: BadFile, "\xff": BadFile,
    '{"lora_alpha": ' + "9" * 5000 + "}": BadFile, " " * 9 * 10**6: BadFile,
    '{"lora_alpha": null}': BadAdapter, '{"lora_alpha": "16"}': BadAdapter, '{"lora_alpha": [1]}': BadAdapter,
    '{"lora_alpha": true}': BadAdapter, '{"lora_alpha": 1e400}': BadAdapter, '{"lora_alpha": NaN}': BadAdapter,
    '{"lora_alpha": ' + "9" * 4000 + "}": BadAdapter, '{"alpha_pattern": [1]}': BadAdapter,
    '{"alpha_pattern": {"(": 1}}': BadAdapter, '{"alpha_pattern": {"a{99999999999}": 1}}': BadAdapter,
    '{"alpha_pattern": {"(((a{999}){999}){999}){999}": 1}}': BadAdapter, '{"alpha_pattern": {"(?i)a": 1}}': BadAdapter,
    '{"alpha_pattern": {"' + "a?" * 3000 + '": 1}}': BadAdapter, '{"alpha_pattern": {"\\ud800[": 1}}': BadAdapter,
}  # fmt: skip


@pytest.mark.parametrize("text", CONFIGURATIONS, ids=[text[:40].strip() for text in CONFIGURATIONS])
def test_configurations(text: str, tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    kind = CONFIGURATIONS[text]
    refused(tmp_path, kind, "adapter_config.json: " if kind is BadFile else "  fc: ")


@pytest.mark.parametrize(
    "text", ["", "null", "7", "[" * 10**5, '{"unet.lora_alpha": null}', '{"unet.lora_alpha": 1e999}']
)
def test_configurations_in_the_header(text: str, tmp_path: Path) -> None:
    factors = {"unet.fc.lora_A.weight": torch.ones(1, 4), "unet.fc.lora_B.weight": torch.ones(6, 1)}
    refused(saved(tmp_path, factors, {"lora_adapter_metadata": text}), LycFxError, "JSON|configuration|alpha is")


@pytest.mark.parametrize("listed", [7, {"fc": 1}, "(", "(?!x", [3, None]])
def test_feedforward_modules_of_any_kind(listed: object, tmp_path: Path) -> None:
    save_file(IA3, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"feedforward_modules": listed}))
    refused(tmp_path, LycFxError, "feedforward|pattern|expression|output side")


@pytest.mark.parametrize(
    "tensors",
    [
        {**LORA, "base_model.model.fc.lora_A.weight": torch.tensor(1.0)},
        {**LORA, "base_model.model.fc.lora_A.weight": torch.ones(0, 4)},
        {**LORA, "base_model.model.fc.lora_B.bias": torch.ones(6, dtype=torch.bool)},
        {"base_model.model.fc.ia3_l": torch.ones(4, dtype=torch.bool)},
        {f"{EMBEDDING}_A": torch.ones(2, 2, 2), f"{EMBEDDING}_B": torch.ones(2)},
        {f"{EMBEDDING}_A": torch.ones(2, 2)},
        {"fc.weight": torch.ones(4), "fc.on_input": torch.tensor(float("nan"))},
    ],
)  # fmt: skip
def test_factors_before_they_are_checked(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1, "feedforward_modules": ["fc"]}')
    refused(tmp_path, BadAdapter, "  fc: ")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "pipe", BadFile, "not a regular file")
    refused(tmp_path / "loop", BadFile, "cannot be read")
    refused("/dev/zero", BadFile, "not a regular file")
    refused(tmp_path / ("x" * 5000), BadFile, "cannot be read")
    refused("a\0b", BadFile, "is no path")


@pytest.mark.parametrize("size", [640, 896, 1152, 1408, 640 + (1 << 16)])
def test_a_header_whose_length_begins_as_a_pickle_does(size: int, tmp_path: Path) -> None:
    tensors = {"fc.lora_up.weight": torch.ones(3, 1), "fc.lora_down.weight": torch.ones(1, 2)}
    least = len(json.dumps({"__metadata__": {"x": ""}})) + 200
    for padding in range(size - least - 200, size):
        save_file(tensors, tmp_path / "a.safetensors", {"x": "y" * max(0, padding)})
        if int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") == size:
            break
    assert (tmp_path / "a.safetensors").read_bytes()[:2] in [bytes([0x80, version]) for version in (2, 3, 4, 5)]
    assert len(lyc_fx.load(tmp_path / "a.safetensors")) == 1


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors", "x.safetensors"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_is_loaded(name: str, protocol: int, tmp_path: Path) -> None:
    payload = pickle.dumps(kinds.Payload(tmp_path / "mark"), protocol)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / name).write_bytes(payload)
    (folder / "adapter_config.json").write_text("{}")
    for path in (folder, folder / name):
        with pytest.raises(BadFile):
            lyc_fx.load(path)
        with pytest.raises(BadFile):
            lyc_fx.fold_checkpoint(path, lyc_fx.load({"fc.diff": torch.ones(1)}), tmp_path / "out.safetensors")
    assert not (tmp_path / "mark").exists()
    pickle.loads(payload)  # the payload would have left its mark
    assert (tmp_path / "mark").exists()


def test_numbers_of_thousands_of_digits_in_names() -> None:
    blocks = [f"{side}_blocks.0.resnets.0.conv1.weight" for side in ("down", "up")]
    odd = f"down_blocks.{'9' * 5000}.resnets.0.conv1.weight"
    names = Names(dict.fromkeys([*blocks, odd], (2, 2)))
    assert names.find(odd.removesuffix(".weight"), "weight") == [(Piece(odd),)]


def test_hints_for_long_names_do_not_take_minutes() -> None:
    letters = [chr(33 + (i * i + k) % 90) for k in range(200) for i in range(500)]
    names = Names({"".join(letters[i:] + letters[:i]): (2, 2) for i in range(4)})
    started = time.perf_counter()
    names.nearest("".join(reversed(letters)), "weight")
    assert time.perf_counter() - started < 2


def test_a_base_weight_without_singular_values(tmp_path: Path) -> None:
    tlora = next(family for family in FAMILIES if family.name == "tlora")
    factors = random_adapter(tlora, (6, 4), rank=2).written("weight")
    adapters = lyc_fx.load({f"fc.{suffix}": tensor for suffix, tensor in factors.items()})
    model = nn.ModuleDict({"fc": nn.Linear(4, 6)})
    nn.init.constant_(model["fc"].weight, float("nan"))
    with pytest.raises(BadAdapter, match=r"fc\.weight: .*non-finite"):
        lyc_fx.merge(model, adapters)
    base = drafted({"fc.weight": torch.full((6, 4), float("nan"))}).written(tmp_path / "base")
    with pytest.raises(BadAdapter, match=r"fc\.weight: .*non-finite"):
        lyc_fx.fold_checkpoint(base, adapters, tmp_path / "out.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_floating_dtype_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    [entry] = lyc_fx.load(saved(tmp_path, {"fc.diff": torch.ones(6, 4).to(dtype)})).entries
    assert entry.adapter.factors()["diff"].dtype == dtype
