"""stage: what depends on stored tensors alone becomes a program of its own, which runs once per change of adapters.

Norms of changed weights, rotations, Khatri–Rao factors, factors in the activations' dtype, merged weights that no chain
replaces: a lowered program computes them anew at every call. Here each such result becomes a buffer
`lyc_fx.staged.<n>`, and what computes it a graph that `restage` runs again. A kernel that convolves activations in
channels last is stored in that layout. Merged weights are computed as for a fold, correctly rounded, even if `narrow`
has made their formula cheaper.

Factors become buffers, which share memory with those of the given program: a staged program runs, and does not train.
"""

from dataclasses import dataclass
from functools import partial
from typing import final

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.constants import adapted_roots, cone, constants, in_bank
from lyc_fx.graph.formulas import Formulas
from lyc_fx.graph.layers import in_layout_of_inputs
from lyc_fx.graph.merged_weight import base_of, formula_of, tensors_of
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import facts, get_tensor
from lyc_fx.graph.rewrite import MERGED, Emit, erase_unused
from lyc_fx.graph.staging import STAGED, freeze_factors, note_staging, staged_values, staging_graph


@final
@dataclass(frozen=True)
class Stage(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        rebuilt = {node for node in gm.graph.nodes if MERGED in node.meta and _name(node) in facts(gm).rebuilt}
        _widen(gm, rebuilt)
        constant = constants(gm)
        chosen = [root for root in adapted_roots(gm) if rebuilt.isdisjoint(cone(root))]
        wanted = [*chosen, *_in_other_layouts(gm, constant)]
        roots = {f"{STAGED}.{n}": root for n, root in enumerate(wanted)}
        graph = staging_graph(roots)
        note_staging(gm, graph)
        values = dict(staged_values(graph, partial(get_tensor, gm)))
        for name, root in roots.items():
            emit = Emit(gm, at=root, like=root, by="stage")
            value = in_layout_of_inputs(root, values[name].detach().clone(), _readers(root, constant))
            buffer = emit.tensor(name, value, persistent=False)
            root.replace_all_uses_with(buffer, propagate_meta=False)
            erase_unused(gm, [root])
        freeze_factors(gm)
        return done(gm, "stage", len(roots))


def _in_other_layouts(gm: GraphModule, constant: set[Node]) -> list[Node]:
    """Factors that convolutions read as they are, and would bring into the layout of activations at every call."""
    found = []
    for node in filter(in_bank, gm.graph.nodes):
        factor = get_tensor(gm, str(node.target))
        if in_layout_of_inputs(node, factor, _readers(node, constant)) is not factor:
            found.append(node)
    return found


def _readers(node: Node, constant: set[Node]) -> list[Node]:
    """Those that are left once constants are staged."""
    return [user for user in node.users if user not in constant]


def _name(merged: Node) -> str:
    base = base_of(merged)
    return "" if base is None else str(base.target)


def _widen(gm: GraphModule, rebuilt: set[Node]) -> None:
    """Compute merged weights as splice wrote them, but for those that every call rebuilds."""
    formulas = Formulas(gm)
    for node in [node for node in gm.graph.nodes if MERGED in node.meta and node not in rebuilt]:
        made, base = node.meta[MERGED], base_of(node)
        if base is None or formula_of(node) != made.formula:
            continue
        wide = formulas.merge(Emit(gm, at=node, like=node, by="splice"), base, made, tensors_of(node, made))
        wide.meta[MERGED] = made
        node.replace_all_uses_with(wide, propagate_meta=False)
        erase_unused(gm, [node])
