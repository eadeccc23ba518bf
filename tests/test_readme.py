"""The README's recipes run as they stand, and its claims about files are true."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import WORLDS
from safetensors.torch import load_file
from typer.testing import CliRunner

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", README, re.DOTALL | re.MULTILINE))


def test_every_recipe_has_something_to_run_on() -> None:
    assert list(RECIPES) == list(WORLDS)


@pytest.mark.filterwarnings("ignore")  # the libraries' own warnings
@pytest.mark.parametrize("name", WORLDS)
def test_a_recipe_runs_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, the second time over what the first has written; its commands with --force then."""
    if name != "Deployment" and "SDXL" not in name:
        pytest.importorskip("diffusers")
        pytest.importorskip("peft")
    WORLDS[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for force in ([], ["--force"]):
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", RECIPES[name], re.DOTALL | re.MULTILINE):
            if language == "python":
                exec(block, names)
                continue
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                said = CliRunner().invoke(app, [*arguments, *force])
                assert (program, said.exit_code, said.exception) == ("lyc-fx", 0, None), said.output
    CHECKS[name](names)


def file_was_folded(_: object) -> None:
    before, after = load_file("sd_xl_base_1.0.safetensors"), load_file("sd_xl_style.safetensors")
    style, detail = load_file("style.safetensors"), load_file("detail.safetensors")
    assert list(before) == list(after)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 2 and all(after[name].dtype == torch.float16 for name in after)
    unet = next(name for name in changed if "diffusion_model" in name)
    wanted = before[unet].double()
    for file, strength in ((style, 0.8), (detail, -0.3)):
        [stem] = [key.removesuffix(".alpha") for key in file if key.startswith("lora_unet") and key.endswith(".alpha")]
        product = file[f"{stem}.lora_up.weight"].double() @ file[f"{stem}.lora_down.weight"].double()
        wanted += strength * 1.5 * product
    assert torch.equal(after[unet], wanted.half())


def folder_was_folded(_: object) -> None:
    from diffusers import DiffusionPipeline

    pipes = [DiffusionPipeline.from_pretrained(name) for name in ("stable-diffusion-xl", "sdxl-style")]
    lyc_fx.merge(pipes[0], "style.safetensors")
    for name in ("unet", "text_encoder_2", "text_encoder"):
        one, other = (getattr(pipe, name).state_dict() for pipe in pipes)
        assert all(torch.equal(one[key], other[key]) for key in one)


def pipeline_was_restored(names: dict[str, Any]) -> None:
    from diffusers import DiffusionPipeline

    wanted = DiffusionPipeline.from_pretrained("stable-diffusion-xl")
    assert names["live"].report.applied == ()
    lyc_fx.merge(wanted, "style.safetensors", 0.8)
    own, theirs = names["pipe"].unet.state_dict(), wanted.unet.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own)


def language_model_is_peft_s(names: dict[str, Any]) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base, folded = (AutoModelForCausalLM.from_pretrained(name) for name in ("llama", "llama-mine"))
    ids = torch.tensor([[1, 4, 2]])
    wanted = peft.PeftModel.from_pretrained(base, "my-lora")(ids).logits
    for model in (names["model"], folded):
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    assert len(lyc_fx.load("my-lora.safetensors")) == len(lyc_fx.load("my-lora")) == 2


def program_was_exported(names: dict[str, Any]) -> None:
    x, model = torch.randn(5, 6), names["model"]
    base = model(x)
    found = [run(x) for run in (torch.export.load("model.pt2").module(), names["instead"], names["fast"])]
    lyc_fx.merge(model, "style.safetensors", 0.8)  # whose weights the unfolded program shares
    for each in found:
        torch.testing.assert_close(each, model(x), rtol=1e-5, atol=1e-5)
    assert (model(x) - base).abs().max() > 1e-2
    assert all(torch.equal(value, load_file("model.safetensors")[key]) for key, value in model.state_dict().items())


CHECKS = dict(
    zip(
        WORLDS,
        (file_was_folded, folder_was_folded, pipeline_was_restored, language_model_is_peft_s, program_was_exported),
        strict=True,
    )
)


def test_every_file_that_the_docs_name_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_test_that_the_docs_name_is_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reference.md").read_text()):
        assert f"def {name}(" in tests, name


def test_the_table_of_what_is_supported_names_every_family() -> None:
    table = README.partition("## What is supported today")[2].partition("## Figures")[0].lower()
    for family in FAMILIES:
        assert family.name.replace("-", "") in table.replace("-", ""), family.name
