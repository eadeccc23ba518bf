"""The algebra of changes: a few structures, and the shapes of the factors that they are made of.

What each structure is as a tensor, as a sum in place and as a product of two matrices is said once, in its file. A
family of adapters is an expression in them.
"""

from lyc_fx.algebra.batched import Batched
from lyc_fx.algebra.factor_shapes import Dims
from lyc_fx.algebra.hadamard import Hadamard
from lyc_fx.algebra.kronecker import Kron
from lyc_fx.algebra.low import Low, Tucker
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.structure import Dense, Structure
from lyc_fx.algebra.weighted import Weighted

__all__ = ["Batched", "Dense", "Dims", "Hadamard", "Kron", "Low", "Shape", "Structure", "Tucker", "Weighted"]
