"""`lyc-fx fold`: the right numbers, and what it prints."""

import json
from pathlib import Path

import pytest
import torch
from oracle import delta
from rich.filesize import decimal
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lyc_fx
from lyc_fx.merging.merged import Change, merged


def change(adapter: Path, layer: str, like: Tensor) -> Tensor:
    """ΔW of one layer at strength 1, by the hand-written formula in float64."""
    entry = next(e for e in lyc_fx.load(adapter).entries if e.module == f"lycoris_{layer.replace('.', '_')}")
    return delta(entry.adapter, tuple(like.shape))


def test_fold_merges_what_the_adapter_names_and_copies_the_rest(files, lyc) -> None:
    said = lyc("fold", files.base, files.locon, "-o", files.out)
    assert (said.code, said.err) == (0, "")
    before, after = load_file(files.base), load_file(files.out)
    assert list(after) == list(before)
    for layer in ("fc", "block.0.conv"):
        name = f"{layer}.weight"
        wanted = before[name].double() + change(files.locon, layer, before[name])
        assert torch.equal(after[name], wanted.to(before[name].dtype))
        assert not torch.equal(after[name], before[name])
    for name in ("fc.bias", "steps"):
        assert torch.equal(after[name], before[name])
    with safe_open(files.out, "pt") as file:
        metadata = file.metadata()
    said_of_it = json.loads(metadata.pop("lyc_fx.fold"))[0]
    assert metadata == {"format": "pt", "made_by": "a test"}
    digest = lyc_fx.load(files.locon).digest
    assert said_of_it["adapters"] == [{"file": files.locon.name, "sha256": digest, "strength": 1.0}]
    assert said_of_it["version"] == lyc_fx.__version__
    assert said.out.splitlines()[0] == "2 adapters on 2 weights: 2 locon"
    assert said.out.splitlines()[1] == "kept: 100 % of the change"
    assert said.out.splitlines()[2].startswith(f"wrote {files.out} ({decimal(files.out.stat().st_size)}) in ")


def test_several_adapters_with_strengths_are_summed_and_rounded_once(files, lyc) -> None:
    said = lyc("fold", files.base, f"{files.locon}@-0.5", f"{files.lokr}@0.25", "-o", files.out, "--strength", "-2")
    assert said.code == 0
    assert said.out.startswith("3 adapters on 2 weights: 2 locon, 1 lokr\n")
    before, after = load_file(files.base), load_file(files.out)
    parts = [(lyc_fx.load(files.locon).select("*_fc"), 1.0), (lyc_fx.load(files.lokr), -0.5)]
    by_formula = merged(before["fc.weight"], [Change(part.entries[0].adapter, strength) for part, strength in parts])
    torch.testing.assert_close(after["fc.weight"], by_formula, rtol=0, atol=1e-7)
    by_hand = before["fc.weight"].double() + change(files.locon, "fc", before["fc.weight"])
    by_hand -= 0.5 * change(files.lokr, "fc", before["fc.weight"])
    torch.testing.assert_close(after["fc.weight"].double(), by_hand, rtol=1e-6, atol=1e-7)


def test_strength_zero_is_the_base_to_the_bit(files, lyc) -> None:
    done = lyc("fold", files.base, files.locon, f"{files.lokr}@3", "-o", files.out, "--strength", "0", "--quiet")
    assert done.code == 0
    assert "no bit of any weight changed, although 3 adapters matched one: their strength is 0" in done.err
    before, after = load_file(files.base), load_file(files.out)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_order_of_adapters_does_not_change_a_byte(files, lyc) -> None:
    other = files.folder / "other.safetensors"
    assert lyc("fold", files.base, files.locon, files.lokr, "-o", files.out).code == 0
    assert lyc("fold", files.base, files.lokr, files.locon, "-o", other).code == 0
    assert files.out.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("options", "changed"),
    [(["--only", "*_conv"], "block.0.conv.weight"), (["--exclude", "*conv"], "fc.weight")],
    ids=["only", "exclude"],
)
def test_part_of_an_adapter(files, lyc, options: list[str], changed: str) -> None:
    said = lyc("fold", files.base, files.locon, "-o", files.out, *options)
    assert said.out.startswith("1 adapter on 1 weight: 1 locon\n")
    before, after = load_file(files.base), load_file(files.out)
    assert [name for name in before if not torch.equal(after[name], before[name])] == [changed]


def test_transposed_weights(files, lyc, tmp_path: Path) -> None:
    before = load_file(files.base)
    stored = before | {"fc.weight": before["fc.weight"].t().contiguous()}
    base = tmp_path / "transposed.safetensors"
    save_file(stored, base)
    assert lyc("fold", base, files.lokr, "-o", files.out, "--transposed", "fc.*").code == 0
    wanted = before["fc.weight"].double() + change(files.lokr, "fc", before["fc.weight"])
    assert torch.equal(load_file(files.out)["fc.weight"].t(), wanted.float())


def test_no_strict_applies_the_rest_and_says_what_was_left(files, lyc, tmp_path: Path) -> None:
    partial = tmp_path / "partial.safetensors"
    factors = load_file(files.locon)
    strange = {key.replace("lycoris_fc", "lycoris_nowhere"): tensor for key, tensor in factors.items()}
    save_file(strange, partial)
    said = lyc("fold", files.base, partial, "-o", files.out, "--no-strict")
    assert said.code == 0
    assert said.out.startswith("1 adapter on 1 weight: 1 locon\n")
    assert "warning: 3 keys had no effect" in said.err
    assert "lycoris_nowhere.lora_up.weight" in said.err


def test_json_report(files, lyc) -> None:
    said = lyc("fold", files.base, f"{files.locon}@0.5", "-o", files.out, "--json")
    facts = json.loads(said.out)
    assert facts["output"] == str(files.out)
    assert facts["bytes"] == files.out.stat().st_size
    assert facts["unused"] == []
    rows = {row["target"]: row for row in facts["applied"]}
    assert set(rows) == {"fc.weight", "block.0.conv.weight"}
    assert (rows["fc.weight"]["rank"], rows["fc.weight"]["alpha"], rows["fc.weight"]["scale"]) == (2, 1.0, 0.5)
    assert {row["strength"] for row in rows.values()} == {0.5}
    assert {row["algorithm"] for row in rows.values()} == {"locon"}


def test_quiet_prints_nothing(files, lyc) -> None:
    said = lyc("fold", files.base, files.locon, "-o", files.out, "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert files.out.exists()


def test_a_path_may_hold_an_at_sign(files, lyc) -> None:
    folder = files.folder / "styles@2"
    folder.mkdir()
    odd = files.locon.rename(folder / "my@style@v1")
    assert lyc("fold", files.base, odd, "-o", files.out, "--quiet").code == 0
    whole = load_file(files.out)["fc.weight"].double()
    assert lyc("fold", files.base, f"{odd}@0.5", "-o", files.out, "--quiet", "--force").code == 0
    half = load_file(files.out)["fc.weight"].double()
    base = load_file(files.base)["fc.weight"].double()
    torch.testing.assert_close(half - base, (whole - base) / 2, rtol=1e-5, atol=1e-6)


def test_blocks_are_factors_by_the_names_in_the_base(files, lyc) -> None:
    said = lyc("fold", files.base, files.locon, "-o", files.out, "--block", "fc*=0.5", "--block", "*=0", "--json")
    assert said.code == 0, said.err
    assert {row["target"]: row["strength"] for row in json.loads(said.out)["applied"]} == {
        "fc.weight": 0.5,
        "block.0.conv.weight": 0.0,
    }
    before, after = load_file(files.base), load_file(files.out)
    wanted = before["fc.weight"].double() + 0.5 * change(files.locon, "fc", before["fc.weight"])
    assert torch.equal(after["fc.weight"], wanted.float())
    assert torch.equal(after["block.0.conv.weight"], before["block.0.conv.weight"])


def test_sequential_and_convention_reach_the_fold(files, lyc) -> None:
    """An IA3 after a LoCon scales what the LoCon left; relative to the base it does not."""
    ia3 = files.folder / "ia3.safetensors"
    factor = torch.linspace(0.5, 2, 6)
    save_file({"lycoris_fc.weight": factor, "lycoris_fc.on_input": torch.tensor(0)}, ia3)
    before = load_file(files.base)["fc.weight"].double()
    delta_ = change(files.locon, "fc", before)
    common = ("fold", files.base, f"{files.locon}@0.5", ia3, "-o", files.out, "--convention", "lycoris", "--force")
    for flags, wanted in {
        (): before + 0.5 * delta_ + before * factor.double()[:, None],
        ("--sequential",): (before + 0.5 * delta_) * (1 + factor.double()[:, None]),
    }.items():
        assert lyc(*common, *flags).code == 0
        torch.testing.assert_close(load_file(files.out)["fc.weight"].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["fc", "=2", "fc=much"])
def test_a_block_that_is_none_is_a_usage_error(text: str, files, lyc) -> None:
    said = lyc("fold", files.base, files.locon, "-o", files.out, "--block", text)
    assert said.code == 2 and "a block is PATTERN=FACTOR" in said.err
    assert not files.out.exists()


def test_less_than_half_of_the_change_is_refused_unless_lossy(files, lyc, tmp_path: Path) -> None:
    """`fc` in float8: 0.4 of a unit on most elements is lost, a whole one on a few is kept."""
    unit = 2.0**-3  # of float8 e4m3 numbers from 1 to 2
    diff = torch.full((6, 4), 0.4 * unit)
    diff[0] = unit
    save_file({"fc.weight": torch.full((6, 4), 1.5).to(torch.float8_e4m3fn)}, files.base)
    save_file({"lycoris_fc.diff": diff}, tmp_path / "weak.safetensors")
    fold = ("fold", files.base, tmp_path / "weak.safetensors")
    share = f"{100 * 4 / (4 + 0.16 * 20):.3g} %"
    said = lyc(*fold, "-o", files.out)
    assert said.code == 0 and "kept: 55.6 % of the change\n" in said.out and share == "55.6 %"
    assert f"warning: only {share} of the change is left after rounding; least of fc.weight {share}\n" == said.err
    files.out.unlink()
    diff[0, 2:] = 0.4 * unit
    save_file({"lycoris_fc.diff": diff}, tmp_path / "weak.safetensors")
    before = files.held()
    for options in (["-o", files.out], ["--dry-run"]):
        said = lyc(*fold, *options)
        assert said.code == 1 and said.out == "" and files.held() == before
        assert said.err.startswith("error: only ") and "least of fc.weight " in said.err and "--lossy" in said.err
        assert "Traceback" not in said.err and "original weights (not quantized" in said.err
    said = lyc(*fold, "-o", files.out, "--lossy", "--json")
    found = json.loads(said.out)
    assert said.code == 0 and files.out.exists()
    assert found["kept"] == {"fc.weight": found["kept_overall"]}
    assert found["kept_overall"] == pytest.approx(2 / (2 + 0.16 * 22))
    assert said.err.startswith("warning: only ") and "--lossy" not in said.err
