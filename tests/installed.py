"""Installing without a network: a package beside its `.dist-info`, as pip leaves it."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"


def install(folder: Path, site: Path) -> None:
    """Install the distribution in a folder, by its pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    for package in project["tool"]["setuptools"]["packages"]:
        shutil.copytree(folder / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(site, project["project"]["name"], project["project"]["entry-points"])


def write_metadata(site: Path, name: str, points: Mapping[str, Mapping[str, str]]) -> None:
    """The two files by which `importlib.metadata` knows a distribution."""
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    groups = ([f"[{group}]", *(f"{key} = {value}" for key, value in of.items())] for group, of in points.items())
    (info / "entry_points.txt").write_text("\n".join(line for group in groups for line in group))


def python(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python where these distributions are installed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (site, ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=site)
