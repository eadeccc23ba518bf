"""`.aoti.pt2`: code compiled for this kind of machine by AOTInductor, which C++ runs without Python.

The description is the extra file `manifest.json` of the archive.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lyc_fx.errors import Unsupported
from lyc_fx.exporting.logs import quiet
from lyc_fx.exporting.manifest import NAME, Manifest
from lyc_fx.graph.program import facts, remember

SUFFIX = ".aoti.pt2"
_OPTIONS = {"aot_inductor.use_runtime_constant_folding": True, "joint_graph_constant_folding": False}
"""What depends on weights alone is computed when the package is loaded: baked in, a small one could not be replaced"""


def with_fixed_ranks(program: GraphModule) -> GraphModule:
    """The program, whose adapters all have the rank of their slots: smaller ones are filled up with zeros.

    The compiler fixes the sizes of a convolution's weight to those of the example, and the code checks nothing.
    """
    slots = facts(program).slots
    if slots is not None:
        remember(program, slots=replace(slots, ranks={}))
    return program


def write(exported: ExportedProgram, file: Path, manifest: Manifest, said: Mapping[str, str], path: object) -> None:
    """Compile a program (seconds to minutes). Raises Unsupported, which names `path`, for what does not compile."""
    try:
        # It writes the machine into its own settings, and these are part of the keys of inductor's caches.
        with quiet(), torch.no_grad(), torch._inductor.config.patch({"aot_inductor.metadata": {}}):
            torch._inductor.aoti_compile_and_package(exported, package_path=str(file), inductor_configs=dict(_OPTIONS))
    except Exception as error:  # of inductor or of the C++ compiler
        reason = " ".join(str(error).split())[:300]
        raise Unsupported(f"{path}: AOTInductor does not compile this program: {reason}") from error
    with zipfile.ZipFile(file, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{NAME}", manifest.text())
        if said:
            archive.writestr(f"{root}/extra/metadata.json", json.dumps(said))
