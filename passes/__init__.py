"""The rewrites of captured programs: one pass per file, class `<Name>` of `lyc_fx.passes.<name>`.

| pass | what it does |
|---|---|
| `splice.Splice` | `W` becomes `round(W + Σ change)`: weight space |
| `canonicalize.Canonicalize` | what means nothing goes; one order of sums |
| `distribute.Distribute` | from weight space to chains on activations |
| `share.Share` | what chains compute twice is computed once |
| `concat.Concat` | narrow layers that read the same activations become one |
| `narrow.Narrow` | formulas that stay with the weight are computed in float32 |
| `stage.Stage` | what depends on stored tensors alone is computed once per change of adapters |
| `fold.Fold` | adapted weights are evaluated, and stored under their own names |
| `evaluate.Evaluate` | a training program becomes the evaluation program |

**Writing one.** A pass is a `torch.fx.passes.infra.pass_base.PassBase`; ours are frozen dataclasses whose fields are
their options. It changes the graph that it gets, which is a copy, and returns `lyc_fx.graph.pipeline.done(gm, name,
fired, misses, rules)`, which records what it did in the program's history; a plain `PassResult` will do, also with
another module. `lyc_fx.lower(adapted, passes=[MyPass()])` runs it after our own (or by its name, where it is
registered: docs/extending.md), and `lyc_fx.graph.pipeline.run(program, MyPass())` alone. Either verifies the result: a
well-formed graph, shapes and dtypes as they were; with `check=True` the numbers.

`lyc_fx.graph.rewrite` has patterns, rules and a driver that applies them to a fixpoint, and `Emit` for new nodes, which
have fake values and the provenance of their layer. Nodes that lyc-fx inserted are marked by
`lyc_fx.graph.rewrite.EMITTED` in `node.meta`; a pass should leave the model's own alone unless it is about them.

A pass never imports another; `lyc_fx/graph/verbs.py` puts them together.
"""
