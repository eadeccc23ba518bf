"""The names that the model classes of a folder use in memory for the weights that it stores."""

from lyc_fx.checkpoint.base import Base
from lyc_fx.checkpoint.ties import configuration
from lyc_fx.naming.disk import names_in_memory


def other_names(base: Base) -> dict[str, str]:
    """Return a mapping from names in memory to stored names, for every model with a config.json.

    Empty for a base that is a single file.
    """
    found: dict[str, str] = {}
    for inside in base.other_files if base.folder else ():
        if inside.name == "config.json":
            prefix = ".".join(inside.parent.parts) + "." if inside.parent.parts else ""
            stored = [t.name for part in base.parts if part.prefix == prefix for t in part.layout.tensors]
            named = names_in_memory(configuration(base.root / inside), stored)
            found |= {prefix + memory: prefix + disk for memory, disk in named.items()}
    return found
