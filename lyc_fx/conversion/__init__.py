"""Converting an adapter file to another convention: other names and keys, and another algorithm only where it is exact.

1. Each adapter of the file is matched to the parameters of the model that it is for (`like`).
2. The rows that it changes are given the target convention's name for them; if they are only a part of what one name
   means, or belong to several names, adapters are fused or split.
3. If the target does not have an adapter's algorithm, it becomes plain LoRA, where that is exact.
"""

from lyc_fx.conversion.convert import Conversion, convert
from lyc_fx.conversion.gather import ConvertedAdapter

__all__ = ["Conversion", "ConvertedAdapter", "convert"]
