"""The wheel has every module and the demo's data, the sdist all that a checkout has, and no link is needed."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = Path("lyc_fx", "passes")
BUILD = "from setuptools import build_meta as b; b.build_sdist('built'); b.build_wheel('built')"
ELSEWHERE = {"passes": "lyc_fx/passes", "examples/minilm": "lyc_fx/cli/demo/minilm"}
"""Packages of the wheel that are other folders in the tree"""


def has_backend() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= 77  # as pyproject.toml asks
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_backend(), reason="setuptools 77 is not installed")


def sources() -> set[Path]:
    """The files of this tree: what git knows or would add, or in an unpacked sdist the list in it."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        text = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    elif (ROOT / "PKG-INFO").is_file():
        text = (ROOT / "lyc_fx.egg-info" / "SOURCES.txt").read_text()
    else:
        pytest.skip("neither a git checkout nor an sdist: nothing says which files belong to it")
    found = {Path(line) for line in text.splitlines() if not line.startswith("lyc_fx.egg-info/")}
    return {path for path in found - {LINK, Path("setup.cfg")} if (ROOT / path).is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, built: nothing appears in the real one, and no old build/ in it counts."""
    copy = tmp_path_factory.mktemp("tree")
    for path in sources():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path)
    if (ROOT / LINK).is_symlink():
        shutil.copy2(ROOT / LINK, copy / LINK, follow_symlinks=False)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy


def test_the_wheel_has_the_packages_and_the_demo_s_data(tree: Path) -> None:
    [wheel] = (tree / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    wanted = set()
    for path in sources():
        parent = path.parent.as_posix()
        if path.parts[0] == "lyc_fx" or parent in ELSEWHERE:
            wanted.add(f"{ELSEWHERE.get(parent, parent)}/{path.name}")
    assert found == wanted
    assert {"lyc_fx/py.typed", "lyc_fx/passes/splice.py", "lyc_fx/cli/demo/minilm/numbers.json"} <= found


def test_the_sdist_has_all_that_a_checkout_has(tree: Path) -> None:
    [sdist] = (tree / "built").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        found = {Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()}
    made = {path for path in found if path.parts[0] in ("lyc_fx.egg-info", "PKG-INFO", "setup.cfg")}
    assert found - made == sources() - {Path("PKG-INFO")}


@pytest.mark.parametrize("link", ["none", "the text that git writes where there are no links"])
def test_passes_are_imported_without_the_link(tree: Path, tmp_path: Path, link: str) -> None:
    [sdist] = (tree / "built").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    if link != "none":
        (unpacked / LINK).write_text("../passes")
    code = "from importlib.util import find_spec; print(find_spec('lyc_fx.passes.splice').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (str(unpacked / "passes" / "splice.py"), 0), done.stderr
