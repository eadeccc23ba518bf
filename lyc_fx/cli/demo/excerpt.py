"""Excerpts of a graph's text: the lines of one layer."""

from torch.fx import GraphModule

from lyc_fx.graph.program import owner
from lyc_fx.graph.show import show


def excerpt(gm: GraphModule, layer: str) -> list[str]:
    """Return the lines of `lyc_fx.show` that belong to one layer, with its name shortened to `…`."""
    nodes = [node for node in gm.graph.nodes if node.op != "get_attr"]
    lines = show(gm).splitlines()
    return [line.replace(f"{layer}.", "….") for node, line in zip(nodes, lines, strict=True) if owner(node)[0] == layer]
