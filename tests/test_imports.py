"""Who may import whom, and that packages in pyproject are the folders on disk."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import lyc_fx

ROOT = Path(__file__).parent.parent
MAY: dict[str, set[str]] = {
    "errors": set(),
    "choices": set(),
    "linkless": set(),
    "extensions": {"errors"},
    "naming": {"extensions"},
    "storage": {"errors"},
    "numerics": set(),
    "algebra": {"errors"},
    "adapters": {"algebra", "algorithms", "choices", "errors", "extensions", "numerics"},  # LoCon, lazily
    "algorithms": {"adapters", "algebra", "errors", "extensions"},
    "merging": {"adapters", "algebra", "errors", "numerics"},
    "formats": {"adapters", "algebra", "algorithms", "errors", "extensions", "storage"},
    "base": {"errors", "naming"},
    "binding": {"adapters", "algebra", "algorithms", "base", "choices", "errors", "formats", "merging", "naming"},
    "graph": {
        "adapters", "algebra", "base", "binding", "choices", "errors", "extensions", "merging", "naming", "numerics",
        "storage",
    },
    "passes": {"adapters", "algebra", "binding", "errors", "graph", "merging", "numerics"},
    "verbs": {"adapters", "binding", "choices", "errors", "graph", "passes"},
    "model": {"adapters", "base", "binding", "choices", "errors", "graph", "merging", "naming", "storage"},
    "exporting": {
        "adapters", "algorithms", "binding", "errors", "graph", "naming", "passes", "storage", "verbs",
    },
    "artefacts": {
        "adapters", "algebra", "algorithms", "binding", "choices", "errors", "exporting", "graph", "merging", "storage",
    },
    "caching": {"errors", "storage"},
    "compiling": {"caching", "errors", "graph"},
    "attaching": {
        "adapters", "base", "binding", "choices", "errors", "graph", "merging", "model", "verbs",
    },
    "checkpoint": {
        "adapters", "algorithms", "base", "binding", "choices", "errors", "exporting", "graph", "merging", "naming",
        "numerics", "storage",
    },
    "inspection": {"adapters", "base", "binding", "checkpoint", "errors", "naming"},
    "conversion": {"adapters", "algebra", "algorithms", "binding", "errors", "formats", "inspection", "naming"},
    "registering": {"algorithms", "errors", "extensions", "formats", "graph", "naming"},
}  # fmt: skip
"""Besides itself; the command line may import all, and nothing but the entry imports it"""


def modules() -> list[Path]:
    return [
        p
        for folder in ("lyc_fx", "passes")
        for p in sorted((ROOT / folder).rglob("*.py"))
        if "lyc_fx/passes" not in str(p)
    ]


def unit(path: Path) -> str:
    """`lyc_fx/algorithms/locon.py` → algorithms; `passes/fold.py` → passes; the graph's verbs by themselves."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "passes" if parts[0] == "passes" else "verbs" if parts[-1] == "verbs" else parts[1]


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
    own = unit(path)
    if own not in ("__init__", "__main__", "cli"):
        assert imported(path) <= MAY[own] | {own}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """What is imported inside a function, or for types alone, does not count."""
    found = {name_of(path): set(needed(path)) for path in modules()}
    order: list[str] = []
    pending = dict(found)
    while pending:
        free = [name for name, needs in pending.items() if not needs & pending.keys() - {name}]
        assert free, f"a circle among {sorted(pending)}"
        order += free
        for name in free:
            del pending[name]
    assert len(order) > 200


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("lyc_fx", *parts) if parts[0] == "passes" else parts).removesuffix(".__init__")


def needed(path: Path) -> Iterator[str]:
    """The modules that a file imports at its top level."""
    known = {name_of(each) for each in modules()}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lyc_fx"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def test_no_module_has_the_name_of_a_public_function() -> None:
    public = set(lyc_fx.__all__)
    assert public.isdisjoint(path.stem if path.stem != "__init__" else path.parent.name for path in top())


def top() -> list[Path]:
    return [*(ROOT / "lyc_fx").glob("*.py"), *(ROOT / "lyc_fx").glob("*/__init__.py")]


def test_no_pass_imports_another() -> None:
    for path in (ROOT / "passes").glob("*.py"):
        assert "passes" not in imported(path), path


def test_packages_are_the_folders_on_disk() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lyc_fx").rglob("__init__.py")}
    elsewhere = {"lyc_fx.passes": "passes", "lyc_fx.cli.demo.minilm": "examples/minilm"}
    assert set(settings["packages"]) == folders | elsewhere.keys()
    assert settings["package-dir"] == elsewhere
    link = ROOT / "lyc_fx" / "passes"
    assert not link.is_dir() or link.resolve() == ROOT / "passes"


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
