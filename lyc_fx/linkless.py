"""`lyc_fx.passes` where the link to it is missing: in an unpacked sdist, or a checkout on a system without links."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
PASSES = "lyc_fx.passes"


def import_passes_beside() -> ModuleType | None:
    """Import the folder `passes` beside `lyc_fx` as `lyc_fx.passes`; None where a folder or link `lyc_fx/passes` is."""
    file = HERE.parent / "passes" / "__init__.py"
    if (HERE / "passes").is_dir() or not file.is_file():
        return None
    spec = spec_from_file_location(PASSES, file, submodule_search_locations=[str(file.parent)])
    if spec is None or spec.loader is None:
        return None
    module = sys.modules[PASSES] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
