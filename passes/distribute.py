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
from lyc_fx.graph.constants import cone
from lyc_fx.graph.layers import sites, transpose_of
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.readers import only_layers_read, read_as_weight, reads_bank
from lyc_fx.graph.rewrite import EMITTED
from lyc_fx.graph.steps import Missed


@final
@dataclass(frozen=True)
class Distribute(PassBase):
    """Options: the sites (names of layer nodes) to rewrite, None for every one; whether also where a chain is more work
    than the layer itself.
    """

    sites: Collection[str] | None = None
    always: bool = False

    def call(self, gm: GraphModule) -> PassResult:
        chosen = [s for s in sites(gm.graph) if self.sites is None or s.node.name in self.sites]
        elsewhere = list(_elsewhere(gm))
        lowering, fired, missed = Lowering(gm, always=self.always), Counter[str](), list[Missed]()
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
            if read_as_weight(source, node) or not _merged(source).meta.get(EMITTED) or not reads_bank(source):
                continue
            if all(n.op != "placeholder" for n in cone(source)):
                reason = f"{node.target} does not read {source.name} as the weight of a layer with chains"
                yield Missed("", node.name, reason)
