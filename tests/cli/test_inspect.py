"""`lyc-fx inspect`."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_one_line_per_layer(files, lyc) -> None:
    said = lyc("inspect", files.locon)
    assert (said.code, said.err) == (0, "")
    heading, *lines = said.out.splitlines()
    assert heading.split() == ["layer", "algorithm", "rank", "alpha", "scale", "factors", "norms", "size"]
    factors = load_file(files.locon)
    norm = {key: f"{factor.double().norm():.4g}" for key, factor in factors.items()}
    fc = next(line for line in lines if line.startswith("lycoris_fc "))
    assert fc.split() == [
        *("lycoris_fc", "locon", "2", "1", "0.5", "lora_up.weight", "6×2,", "lora_down.weight", "2×4"),
        *(f"{norm['lycoris_fc.lora_up.weight']},", norm["lycoris_fc.lora_down.weight"], "80", "bytes"),
    ]
    conv = next(line for line in lines if line.startswith("lycoris_block_0_conv "))
    assert conv.split()[:5] == ["lycoris_block_0_conv", "locon", "1", "2", "2"]
    assert "8×1×1×1, lora_down.weight 1×4×3×3" in conv
    assert any(line.startswith("2 layers: 2 locon; 256 bytes of factors") for line in lines)
    assert "metadata ss_network_dim: 2" in lines
    assert f"metadata ss_tags: {'x' * 200}…" in lines


def test_full_factors_have_no_rank_and_scale_one(files, lyc) -> None:
    row = next(line for line in lyc("inspect", files.lokr).out.splitlines() if line.startswith("lycoris_fc "))
    assert row.startswith("lycoris_fc  lokr (full w1, full w2)  -     1      1 ")


def test_json(files, lyc) -> None:
    facts = json.loads(lyc("inspect", files.locon, "--json").out)
    factors = load_file(files.locon)
    assert facts["file"] == str(files.locon)
    assert facts["metadata"] == {"ss_network_dim": "2", "ss_tags": "x" * 300}
    assert facts["unread"] == []
    assert facts["totals"] == {"layers": 2, "algorithms": {"locon": 2}, "bytes": 256}
    layers = {layer["module"]: layer for layer in facts["layers"]}
    fc = layers["lycoris_fc"]
    assert {key: fc[key] for key in ("algorithm", "variant", "rank", "alpha", "scale", "bytes")} == {
        "algorithm": "locon", "variant": "", "rank": 2, "alpha": 1.0, "scale": 0.5, "bytes": 80,
    }  # fmt: skip
    for factor in fc["factors"]:
        tensor = factors[f"lycoris_fc.{factor['name']}"]
        assert factor["shape"] == list(tensor.shape)
        assert factor["dtype"] == "float32"
        assert factor["norm"] == pytest.approx(float(tensor.double().square().sum().sqrt()))


def test_a_terminal_shows_whole_names(files, lyc, monkeypatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    said = lyc("inspect", files.locon)
    assert said.code == 0
    assert "lycoris_block_0_conv" in said.out
    assert "───" in said.out


def test_keys_that_no_format_reads_are_listed(files, lyc) -> None:
    save_file(load_file(files.lokr) | {"lycoris_fc.mystery": torch.ones(1)}, files.lokr)
    said = lyc("inspect", files.lokr)
    assert said.code == 1
    assert "not understood: lycoris_fc.mystery" in said.out.splitlines()


@pytest.mark.parametrize("command", ["inspect", "coverage"])
def test_the_sound_part_of_a_broken_file_is_shown(command: str, files, lyc) -> None:  # type: ignore[no-untyped-def]
    broken = files.folder / "broken.safetensors"
    tensors = load_file(files.locon)
    tensors["lycoris_block_0_conv.lora_up.weight"].fill_(float("nan"))
    save_file(tensors, broken)
    said = lyc(command, *([files.base] if command == "coverage" else []), broken)
    assert said.code == 1
    assert said.err.startswith(
        f"error: {broken}: 1 module cannot be used:\n  lycoris_block_0_conv: lora_up.weight holds"
    )
    assert "lycoris_fc" in said.out and "lycoris_block_0_conv" not in said.out
    whole = lyc(command, *([files.base] if command == "coverage" else []), files.locon)
    assert (whole.code, whole.err) == (0, "")


@pytest.mark.parametrize("command", ["inspect", "coverage"])
def test_a_key_without_effect_is_an_exit_code(command: str, files, lyc) -> None:  # type: ignore[no-untyped-def]
    save_file(load_file(files.locon) | {"lycoris_fc.mystery": torch.ones(2)}, files.folder / "odd.safetensors")
    said = lyc(command, *([files.base] if command == "coverage" else []), files.folder / "odd.safetensors")
    assert (said.code, said.err) == (1, "")
    assert "lycoris_fc.mystery" in said.out


def test_a_pipe_that_is_closed_is_no_error(files) -> None:  # type: ignore[no-untyped-def]
    tensors = {}
    for i in range(2000):
        tensors |= {f"b.{i}.lora_up.weight": torch.ones(3, 2), f"b.{i}.lora_down.weight": torch.ones(2, 4)}
    save_file(tensors, files.folder / "many.safetensors")
    command = [sys.executable, "-m", "lyc_fx", "inspect", str(files.folder / "many.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"layer")
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")
