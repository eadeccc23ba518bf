"""Writing an adapter file in another convention: other names, other keys, and another algorithm only where it is exact.

1. Each adapter of the file meets the parameters of the model that it is for (`like`).
2. The rows that it changes have a name in the target convention, or a part of one, or several.
3. An algorithm that the target does not have becomes plain LoRA where that is exact.
"""

from lyc_fx.convert.convert import Conversion, convert
from lyc_fx.convert.gather import Made

__all__ = ["Conversion", "Made", "convert"]
