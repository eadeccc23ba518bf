"""Programs to deploy: with the adapter as an input, or with the strengths of the adapters inside."""

from torch.fx import GraphModule

from lyc_fx.graph import pipeline
from lyc_fx.graph.verbs import lower
from lyc_fx.passes.canonicalize import Canonicalize
from lyc_fx.passes.distribute import Distribute
from lyc_fx.passes.lift import Lift
from lyc_fx.passes.narrow import Narrow
from lyc_fx.passes.per_sample import PerSample
from lyc_fx.passes.stage import Stage


def slots(adapted: GraphModule) -> GraphModule:
    """Make the adapter an input: of `splice(…, rank=N)`, a program that also takes `adapter` and `strengths`.

    `adapter` is a dict of tensors that `lyc_fx.pack` makes of any adapter of the same form; `strengths` are a float32
    number for each adapter set. Low-rank chains take adapters of any rank once the program is exported. The given
    adapter is none of the program's any more.

    Raises InvalidGraph for a program without such places, or that was staged.
    """
    return pipeline.run(adapted, Distribute(), Narrow(), Canonicalize(), Lift())


def styles(adapted: GraphModule) -> GraphModule:
    """Keep the adapters inside, and take their strengths at each call, for each sample: `strengths`, `(batch, sets)`.

    The n-th column is that of the n-th set given to splice; a row of zeros is the base model. All adapters must have a
    chain at their layers: raises Unsupported, and lists those that stay with the weight, which all samples share.
    """
    lowered = lower(pipeline.run(adapted, Distribute(always=True)))
    return pipeline.run(lowered, PerSample(), Canonicalize(), Stage())
