"""--config and --alpha, for files of PEFT's keys without a configuration."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

UP, DOWN = torch.ones(8, 2), torch.ones(2, 6)


def test_the_command_line_says_it_too(lyc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save_file({"fc.weight": torch.zeros(8, 6)}, tmp_path / "base.safetensors")
    tensors = {"base_model.model.fc.lora_A.weight": DOWN, "base_model.model.fc.lora_B.weight": UP}
    save_file(tensors, tmp_path / "style.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 5}))
    fold = ("fold", tmp_path / "base.safetensors", tmp_path / "style.safetensors", "--dry-run", "--json")
    for options, wanted in ((("--alpha", "3"), 1.5), (("--config", tmp_path / "mine.json"), 2.5)):
        said = lyc(*fold, *options)
        assert json.loads(said.out)["applied"][0]["scale"] == wanted
        assert "AssumedScale" not in said.err and "no alpha says" not in said.err
    said = lyc(*fold)
    assert said.code == 0 and "no alpha says the scale of its 1 adapter" in said.err


def test_warnings_of_many_modules_are_one_line(lyc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors = {}
    for name in ("a", "b", "c"):
        tensors |= {f"lycoris_{name}.lora_up.weight": UP.clone(), f"lycoris_{name}.lora_down.weight": DOWN.clone()}
        tensors[f"lycoris_{name}.alpha"] = torch.tensor(0.0)
    save_file(tensors, tmp_path / "zero.safetensors")
    said = lyc("inspect", tmp_path / "zero.safetensors")
    assert said.code == 0
    assert said.err == "warning: lycoris_a and 2 more: alpha is 0, read as LyCORIS reads it: scale 1\n"
