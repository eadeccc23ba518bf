"""The verbs of the graph road: splice, lower, fold, evaluate."""

import warnings
from collections.abc import Iterable

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase

from lyc_fx.adapters.padding import Room
from lyc_fx.binding.report import NothingChanged, Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import WrongArgument
from lyc_fx.graph import pipeline
from lyc_fx.graph.further import further
from lyc_fx.graph.plan import Plan
from lyc_fx.graph.program import captured, facts, history, remember
from lyc_fx.passes.canonicalize import Canonicalize
from lyc_fx.passes.concat import Concat
from lyc_fx.passes.distribute import Distribute
from lyc_fx.passes.evaluate import Evaluate
from lyc_fx.passes.fold import Fold
from lyc_fx.passes.narrow import Narrow
from lyc_fx.passes.share import Share
from lyc_fx.passes.splice import Splice
from lyc_fx.passes.stage import Stage


def splice(
    gm: GraphModule,
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    rank: int | None = None,
) -> GraphModule:
    """Splice adapters into a captured program, in weight space: `W` becomes `round(W + Σ change)`.

    `adapters` is a file, what `load` returned, a list of these or of (adapters, strength) pairs, or a mapping from
    them to strengths; `strength` multiplies all. A strength may also be a mapping from fnmatch patterns over the
    model's weight names to factors ("block weights"): `{"*.attn1.*": 0.5, "*": 1}`, of which the first that matches
    counts.

    Strength 0 is the base to the bit and 1 the trained effect, for every family; in between, the family's
    documented interpolation, or with `convention="lycoris"` that of LyCORIS. Changes are relative to the base
    weight and summed, in whatever order they come; with `sequential=True` each set is applied to what the ones
    before it left.

    The factors are parameters of the result, and the strength of the n-th set is the buffer `lyc_fx.<n>.strength`;
    filling it with another value changes the program without a recompile. At strength 0 nothing is inserted.

    With `rank`, other adapters can take the place of these without a recompile (`lyc_fx.exchange`): factors are filled
    up with zeros to that rank, alpha and block weights become buffers, and sets of strength 0 are inserted too.

    Raises BadAdapter, listing every adapter that finds no weight or does not fit; with `strict=False` those
    without a weight become entries of `lyc_fx.report(result)`. Warns with NothingChanged where nothing was inserted.
    """
    stack = stacked(adapters, strength, convention=convention, sequential=sequential)
    adapted = pipeline.run(gm, Splice(stack, strict, None if rank is None else Room(rank)))
    if not history(adapted)[-1].fired:
        given = report(adapted)
        idle = "the strength is 0, or the program reads none of the adapted weights" if given.applied else None
        why = idle or given.nothing_changed
        warnings.warn(f"nothing was spliced in: {why}", NothingChanged, stacklevel=2)
    return adapted


def lower(
    adapted: GraphModule, plan: Plan | None = None, *, passes: Iterable[PassBase | str] = (), check: bool = False
) -> GraphModule:
    """Make an adapted program quick to run unfolded.

    Adapters move from weights to activations where the plan says so and an exact chain exists; their narrow layers that
    read the same activations, such as those of queries, keys and values, become one; formulas that stay with the
    weights are computed in float32 instead of float64. A plan comes from `lyc_fx.plan`; without one,
    every chain is taken that is no more work than the layer itself.
    `lyc_fx.history(result)` says how often each pass and rule fired, and why rules did not.

    `passes` are further ones that run after these, each a `torch.fx.passes.infra.pass_base.PassBase`, or the name of
    one that is installed or registered (`lyc_fx.register`). They get a copy, and what they make of it is verified as
    for our own: see `lyc_fx.passes`.

    `check` runs the program before and after each pass on random inputs, at two values of every size that may vary,
    and raises InvalidGraph with the pass, the rule and the first node that differs (`lyc_fx.graph.validation`).
    """
    if plan is not None and not isinstance(plan, Plan):
        raise WrongArgument(f"a plan is a lyc_fx.Plan, not {type(plan).__name__}")
    wanted = further(passes)
    chosen = plan or Plan.default(captured(adapted))
    chosen.refuse_unknown(adapted)
    own = Distribute(chosen.chains, always=plan is not None), Narrow(), Canonicalize(), Share(), Concat()
    lowered = pipeline.run(adapted, *own, *wanted, check=check)
    remember(lowered, rebuilt=frozenset(each.weight for each in chosen.layers if each.form == "rebuilt"))
    return lowered


def fold(
    adapted: GraphModule, *, allow_nonfinite: bool = False, lossy: bool = False, check: bool = False
) -> GraphModule:
    """Evaluate every adapted weight and store it under its own name: same keys, same operators as the model.

    `lyc_fx.report(result)` says how much each weight changed, and how much of the change is left after rounding.
    `check` is as in `lower`.

    Raises InvalidGraph for a program that was lowered, or whose weights have no values; BadAdapter for a base weight
    that holds NaN or infinity (unless `allow_nonfinite`), for a merged one that overflows, and if rounding leaves less
    than half of the changes (unless `lossy`). Warns with RoundedAway if it leaves less than 0.9 of them.
    """
    folded = pipeline.run(adapted, Fold(allow_nonfinite, lossy), check=check)
    report(folded).warn_of_rounding()
    return folded


def stage(lowered: GraphModule) -> GraphModule:
    """Compute what depends on factors, strengths and weights alone once, instead of at every call.

    Norms, rotations, cast factors and merged weights of a lowered (or just spliced) program become buffers, outside of
    its state dict. After factors or strengths have changed, `lyc_fx.restage(result)` computes them anew, in place.
    The result is for running: its factors are no parameters any more.

    Raises InvalidGraph for a program that is staged already, or whose weights have no values.
    """
    return pipeline.run(lowered, Stage())


def evaluate(program: GraphModule) -> GraphModule:
    """The exact evaluation graph of a program that was captured in training mode, with or without adapters.

    Dropout goes, batch norm uses its running statistics and leaves them alone. What the model's own code does
    where it asks `self.training` was fixed by the capture. The other way round is impossible. Raises WrongArgument.
    """
    return pipeline.run(program, Evaluate())


def report(gm: GraphModule) -> Report:
    """What splice applied where. Raises WrongArgument."""
    return facts(captured(gm)).report or Report(())
