"""What the classes of a folder's models call the weights that are stored."""

from lyc_fx.folding.base import Base
from lyc_fx.folding.ties import configuration
from lyc_fx.naming.disk import names_in_memory


def other_names(base: Base) -> dict[str, str]:
    """Those names, to the stored ones; none for a base that is no folder."""
    found: dict[str, str] = {}
    for inside in base.carried if base.folder else ():
        if inside.name == "config.json":
            prefix = ".".join(inside.parent.parts) + "." if inside.parent.parts else ""
            stored = [t.name for part in base.parts if part.prefix == prefix for t in part.layout.tensors]
            named = names_in_memory(configuration(base.root / inside), stored)
            found |= {prefix + memory: prefix + disk for memory, disk in named.items()}
    return found
