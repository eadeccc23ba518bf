"""The graph road in three verbs: splice, lower, fold."""

from torch.fx import GraphModule

from lyc_fx import pipeline
from lyc_fx.binding import Stack, normalized
from lyc_fx.plan import Plan
from lyc_fx.program import facts
from lyc_fx.report import Report


def splice(gm: GraphModule, adapters: Stack, strength: float = 1.0, *, strict: bool = True) -> GraphModule:
    """Splice adapters into a captured program, in weight space: `W` becomes `round(W + Σ change)`.

    `adapters` is what `load` returned, or a list of (adapters, strength) pairs; `strength` multiplies all. The
    factors are parameters of the result, each set's strength is the buffer `lyc_fx.<set>.strength`; filling it
    with another value changes the program without a recompile. At strength 0 nothing is inserted.

    Raises BadAdapter, listing every adapter that finds no weight or does not fit; with `strict=False` those
    without a weight become entries of `lyc_fx.report(result)`.
    """
    return pipeline.run(gm, pipeline.find("splice", stack=normalized(adapters, strength), strict=strict))


def lower(adapted: GraphModule, plan: Plan | None = None) -> GraphModule:
    """Make an adapted program quick to run unfolded.

    Adapters move from weights to activations where the plan says so and an exact chain exists; formulas that
    stay with the weights are computed in float32 instead of float64. `plan=None` plans by itself (`Plan.default`).
    `lyc_fx.history(result)` says how often each pass fired, and why rules did not.
    """
    chosen = (plan or Plan.default(adapted)).chains
    tidy = pipeline.find("canonicalize")
    return pipeline.run(adapted, tidy, pipeline.find("distribute", sites=chosen), pipeline.find("narrow"), tidy)


def fold(adapted: GraphModule) -> GraphModule:
    """Evaluate every adapted weight and store it under its own name: same keys, same operators as the model.

    Raises InvalidGraph for a program that was lowered, or whose weights have no values.
    """
    return pipeline.run(adapted, pipeline.find("fold"))


def report(gm: GraphModule) -> Report:
    """What splice applied where."""
    return facts(gm).report or Report(())
