"""The plug-in of `examples/`, and broken ones, as installed distributions in a Python of their own."""

import json
from pathlib import Path

import pytest
import torch
from installed import PLUGIN, install, python, write_metadata
from safetensors.torch import load_file

import lyc_fx
from lyc_fx.algorithms import FAMILIES, families

TOWER = Path(__file__).parent / "tower.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the plug-in is installed, beside two distributions of which something is broken."""
    folder = tmp_path_factory.mktemp("site")
    install(PLUGIN, folder)
    (folder / "halves.py").write_text("import lyc_fx.algorithms.locon as locon\nCOUNT = 3\nFamily = locon.LoCon\n")
    write_metadata(
        folder,
        "broken",
        {
            "lyc_fx.algorithms": {"gone": "no_such_module:Family", "number": "halves:COUNT", "ours": "halves:Family"},
            "lyc_fx.formats": {"family": "halves:Family"},
        },
    )
    return folder


@pytest.fixture(scope="module")
def work(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `tower.py` leaves where all its assertions hold."""
    folder = tmp_path_factory.mktemp("work")
    done = python(site, TOWER, folder)
    assert done.returncode == 0, done.stderr
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def test_every_road_knows_an_installed_plug_in(work: Path) -> None:
    assert (work / "lora").exists()


def test_what_is_broken_is_named_once_and_the_rest_works(work: Path) -> None:
    said = (work / "stderr.txt").read_text()
    for point in (
        "broken: entry point gone = no_such_module:Family of lyc_fx.algorithms is left out: ModuleNotFoundError",
        "broken: entry point number = halves:COUNT of lyc_fx.algorithms is left out: WrongArgument",
        "broken: entry point family = halves:Family of lyc_fx.formats is left out: WrongArgument",
    ):
        assert said.count(point) == 1
    assert said.count("is left out") == 3 and said.count("BrokenExtension") == 2, "one warning for each group"


def test_the_command_line_knows_an_installed_plug_in(site: Path, work: Path) -> None:
    shown = python(site, "-m", "lyc_fx", "inspect", "--json", work / "adapter.safetensors")
    assert shown.returncode == 0, shown.stderr
    layers = json.loads(shown.stdout)["layers"]
    assert {(layer["algorithm"], layer["rank"], layer["scale"]) for layer in layers} == {("lora-xs", 3, 2.0)}
    assert sorted(layer["module"] for layer in layers) == [f"blocks.{n}.{m}" for n in (0, 1) for m in ("down", "up")]

    out = work / "folded.safetensors"
    arguments = (work / "base.safetensors", f"{work / 'adapter.safetensors'}@0.7", "-o", out)
    done = python(site, "-m", "lyc_fx", "fold", *arguments)
    assert done.returncode == 0, done.stderr
    folded, wanted = load_file(out), load_file(work / "wanted.safetensors")
    assert folded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-12, atol=1e-12)


def test_nothing_is_loaded_before_it_is_of_use(site: Path) -> None:
    code = (
        "import sys, lyc_fx, lyc_fx.registering, lyc_fx.conversion; print('lyc_fx_example' in sys.modules);"
        "lyc_fx.algorithms.families(); print('lyc_fx_example.lora_xs' in sys.modules)"
    )
    done = python(site, "-c", code)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_without_the_plug_in_its_files_are_refused(work: Path) -> None:
    assert families() == FAMILIES, "the tests run where no plug-in is installed"
    with pytest.raises(lyc_fx.BadAdapter, match="of a known adapter format"):
        lyc_fx.load(work / "adapter.safetensors")


@pytest.mark.parametrize("asks", [True, False])
def test_a_module_may_register_what_its_entry_point_names(asks: bool, tmp_path: Path) -> None:
    """While the table imports it, of which it may ask then; or where the user imports it."""
    (tmp_path / "eager.py").write_text(
        "import lyc_fx\n"
        "from lyc_fx_example.lora_xs import LoraXS\n"
        "from lyc_fx.algorithms import FAMILIES, families\n"
        f"assert {not asks} or families() == FAMILIES\n"
        "Family = lyc_fx.register(LoraXS)\n"
        f"assert {not asks} or families() == (*FAMILIES, Family)\n"
    )
    install(PLUGIN, tmp_path)
    write_metadata(tmp_path, "eager", {"lyc_fx.algorithms": {"first": "eager:Family"}})
    code = (
        f"{'' if asks else 'import eager'}\n"
        "from lyc_fx.algorithms import FAMILIES, families\n"
        "for _ in range(2): assert [f.name for f in families()[len(FAMILIES):]] == ['lora-xs']\n"
    )
    done = python(tmp_path, "-W", "error::UserWarning", "-c", code)
    assert done.returncode == 0, done.stderr
