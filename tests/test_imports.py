"""Who may import whom, and that packages in pyproject are the folders on disk."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOW = {
    "copies",
    "errors",
    "program",
    "report",
    "show",
    "symbolic",
    "propagation",
    "verify",
    "layers",
    "rewrite",
    "files",
}
FILES = {"errors", "system"}
MAY: dict[str, set[str]] = {
    "errors": set(),
    "extensions": {"errors"},
    "further": {"errors", "extensions"},
    "registering": {"errors", "extensions", "families", "formats", "further", "layers", "naming"},
    "report": {"errors", "naming"},
    "steps": set(),
    "copies": {"program"},
    "program": {"errors", "report", "steps"},
    "taken": {"copies", "errors", "program", "propagation", "show", "steps"},
    "layers": {"algebra", "conv1d", "errors", "extensions", "layers", "program", "rewrite"},
    "symbolic": set(),
    "show": {"errors"},
    "conv1d": {"naming"},
    "system": set(),
    "files": FILES,
    "outputs": FILES | {"files"},
    "propagation": set(),
    "foreign": set(),
    "verify": {"errors", "program", "propagation", "show", "symbolic"},
    "trials": {"errors"},
    "validation": {"errors", "program", "show", "trials"},
    "rewrite": {"copies", "errors", "program", "propagation", "rewrite", "steps"},
    "algebra": {"algebra", "errors"},
    "families": {"algebra", "errors", "extensions", "families"},
    "renaming": {"errors"},
    "adapters": {"families", "renaming"},
    "naming": {"extensions", "naming"},
    "chosen": {"adapters", "errors", "formats"},
    "whole": {"errors", "program"},
    "stand_in": {"errors", "program"},
    "stack": {"adapters", "chosen", "errors", "families"},
    "fitting": {"adapters", "errors", "families", "naming"},
    "architecture": set(),
    "named": {"adapters", "naming"},
    "unmatched": {"adapters", "architecture", "errors", "naming"},
    "twins": {"families", "fitting", "naming"},
    "allocator": set(),  # of the process, so that only the command line may touch it
    "blockwise": {"families"},
    "experts": {"adapters", "families", "fitting", "naming"},
    "binding": {
        "adapters",
        "experts",
        "blockwise",
        "errors",
        "families",
        "fitting",
        "named",
        "naming",
        "report",
        "stack",
        "twins",
        "unmatched",
    },
    "formats": {"adapters", "algebra", "errors", "extensions", "families", "files", "formats", "outputs"},
    "convert": {
        "adapters",
        "algebra",
        "chosen",
        "convert",
        "errors",
        "experts",
        "families",
        "fitting",
        "formats",
        "named",
        "naming",
        "outputs",
        "shapes",
    },
    "shapes": {"conv1d", "fitting", "folding", "naming", "orientation"},
    "coverage": {
        "adapters",
        "chosen",
        "errors",
        "experts",
        "fitting",
        "folding",
        "named",
        "naming",
        "report",
        "shapes",
        "stack",
    },
    "capture": {"copies", "capture", "errors", "foreign", "layers", "naming", "program", "trials", "validation"},
    "chains": {"algebra", "chains", "formulas", "layers", "program", "rewrite", "terms"},
    "targets": {"fitting", "layers", "naming", "program"},
    "terms": {"families", "rewrite"},
    "formulas": {"families", "program", "rewrite", "terms"},
    "inserted": {"binding", "fitting", "formulas", "program", "rewrite", "terms"},
    "passes": LOW
    | {
        "adapters",
        "binding",
        "capture",
        "fitting",
        "algebra",
        "inserted",
        "targets",
        "chains",
        "families",
        "naming",
        "pipeline",
        "stack",
        "steps",
        "twins",
    },
    "pipeline": {"copies", "errors", "program", "steps", "taken", "validation", "verify"},
    "memory": {"program"},
    "undo": set(),
    "weight_handles": {"memory", "undo", "foreign", "conv1d", "fitting", "errors", "layers", "program"},
    "live": LOW
    | {"foreign", "naming", "binding", "blockwise", "families", "weight_handles", "stack", "twins", "whole"},
    "stores": {"errors", "files", "formats"},
    "swap": LOW
    | {"undo", "adapters", "binding", "blockwise", "families", "live", "weight_handles", "stack", "stores", "whole"},
    "orientation": {"errors", "fitting", "naming"},
    "folding": LOW
    | FILES
    | {"adapters", "named", "naming", "outputs", "binding", "families", "fitting", "folding", "formats", "stack"},
    "choices": set(),
    "checkpoint": LOW
    | {"binding", "choices", "fitting", "naming", "folding", "families", "formats", "orientation", "stack"},
}


def modules() -> list[Path]:
    return [
        p
        for folder in ("lyc_fx", "passes")
        for p in sorted((ROOT / folder).rglob("*.py"))
        if "lyc_fx/passes" not in str(p)
    ]


def unit(path: Path) -> str:
    """`lyc_fx/algorithms/locon.py` → families; `lyc_fx/model/merge.py` → live; `passes/fold.py` → passes."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "passes" if parts[0] == "passes" else parts[1]


def imported(path: Path) -> set[str]:
    """The units of lyc_fx that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lyc_fx":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lyc_fx.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = MAY.get(unit(path))
    if allowed is None:
        assert "cli" not in imported(path) or unit(path) in ("cli", "__main__"), "nothing but the entry knows the cli"
    else:
        assert imported(path) <= allowed


def test_no_pass_imports_another() -> None:
    for path in (ROOT / "passes").glob("*.py"):
        assert "passes" not in imported(path), path


def test_packages_are_the_folders_on_disk() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lyc_fx").rglob("__init__.py")} | {
        "lyc_fx.passes"
    }
    assert set(settings["packages"]) == folders
    assert (ROOT / "lyc_fx" / "passes").resolve() == ROOT / "passes"


def test_the_bare_name_passes_is_not_imported() -> None:
    for path in modules():
        assert not [
            n
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Import) and n.names[0].name == "passes"
        ]


def test_the_package_imports_alone() -> None:
    code = "import lyc_fx, lyc_fx.algorithms; assert len(lyc_fx.algorithms.FAMILIES) >= 3; print(lyc_fx.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
