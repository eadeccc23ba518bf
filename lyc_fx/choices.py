"""Arguments that are one of a few words, for the library and for the command line, which must not wait for torch."""

from typing import Literal

Convention = Literal["interpolate", "lycoris"]
"""What strengths between 0 and 1 mean for DoRA and rescaled OFT (docs/strength.md)"""
Rounding = Literal["nearest", "stochastic"]
"""How the results of a fold are rounded"""
