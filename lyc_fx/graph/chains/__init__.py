"""Layers on activations: `layer(x, round(W + Σ change), b)` as exact narrow layers beside `layer(x, W, b)`.

A layer is linear in its weight, so `layer(x, W + s·Δ) = layer(x, W) + s · layer(x, Δ)`, and a structured Δ needs no
dense matrix; what maps the rows or inputs of the weight maps the layer's outputs before the bias, or its inputs. What
each structure does is said in `lyc_fx.algebra`; here is how a program's layer gets it. Chains run in the activations'
dtype.
"""

from lyc_fx.graph.chains.lowering import Lowered, Lowering
from lyc_fx.graph.chains.reading import Reading

__all__ = ["Lowered", "Lowering", "Reading"]
