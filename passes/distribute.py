"""distribute: from weight space to activation space, by what each structure of the algebra does to a layer.

Of each layer's merged weight, the adapters that have an exact form on activations become chains. What has none, or none
that is cheaper, stays in weight space; the step says why.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import final

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.algebra.layer import NoChain
from lyc_fx.graph.chains import Lowering, Reading
from lyc_fx.graph.layers import REPEATS, sites, transpose_of, weight_of
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import BANK
from lyc_fx.graph.rewrite import EMITTED
from lyc_fx.graph.steps import Missed


@final
@dataclass(frozen=True)
class Distribute(PassBase):
    """Option: the sites (names of layer nodes) to rewrite; None is every site where there is a chain."""

    sites: Collection[str] | None = None

    def call(self, gm: GraphModule) -> PassResult:
        chosen = [s for s in sites(gm.graph) if self.sites is None or s.node.name in self.sites]
        elsewhere = list(_elsewhere(gm))
        lowering, fired, missed = Lowering(gm), Counter[str](), list[Missed]()
        for site in [s for s in chosen if reads_bank(s.weight) and only_layers_read(s.weight)]:
            name = site.node.name
            try:
                done_here = lowering.lower(Reading.of(site))
            except NoChain as miss:
                missed.append(Missed("", name, str(miss)))
            else:
                fired.update(done_here.rules)
                missed += [Missed(rule, name, reason) for rule, reason in done_here.kept]
        return done(gm, "distribute", fired.total(), (*missed, *elsewhere), fired)


def reads_bank(node: Node) -> bool:
    """Whether a weight depends on a spliced adapter."""
    return any(n.op == "get_attr" and str(n.target).startswith(f"{BANK}.") for n in _cone(node))


def only_layers_read(weight: Node) -> bool:
    """Whether a merged weight goes nowhere but to layers of the table: else it is made at each call all the same."""
    sources = [weight]
    while (source := transpose_of(sources[-1])) is not None:
        sources.append(source)
    return all(_as_weight(source, user) for source in sources for user in source.users)


def _as_weight(source: Node, user: Node) -> bool:
    if transpose_of(user) is source:
        return all(_as_weight(user, each) for each in user.users)
    if user.meta.get(EMITTED):  # another layer's formula
        return True
    if user.target in REPEATS:
        return all(_as_weight(source, each) for each in user.users)
    return weight_of(user) is source


def _cone(node: Node) -> Iterator[Node]:
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        yield current
        pending += [i for i in current.all_input_nodes if i not in seen]
        seen.update(current.all_input_nodes)


def _merged(node: Node) -> Node:
    """A node behind transposes."""
    while (source := transpose_of(node)) is not None:
        node = source
    return node


def _elsewhere(gm: GraphModule) -> Iterator[Missed]:
    """The model's own nodes that read an adapted parameter, but not as the weight of a layer of the table."""
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.meta.get(EMITTED) or transpose_of(node) is not None:
            continue
        for source in node.all_input_nodes:
            if _as_weight(source, node) or not _merged(source).meta.get(EMITTED) or not reads_bank(source):
                continue
            if all(n.op != "placeholder" for n in _cone(source)):
                reason = f"{node.target} does not read {source.name} as the weight of a layer with chains"
                yield Missed("", node.name, reason)
