"""The rewrites: one pass per file, imported as `lyc_fx.passes.<name>`, class `<Name>`.

A pass is a frozen dataclass, its fields are its options. It changes the graph that it gets, and records what it
did with `lyc_fx.pipeline.done`; the pipeline hands it a copy, and verifies the result.
"""
