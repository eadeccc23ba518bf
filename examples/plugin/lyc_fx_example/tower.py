"""The two names of each module of an architecture: in the original publication, and in a port of it."""

from lyc_fx.naming.scheme import Scheme, rule

TOWER = Scheme(
    (rule("blocks.{}.up", "tower.{}.widen"), rule("blocks.{}.down", "tower.{}.narrow")),
    marks=(("blocks.{}.up", "blocks.{}.down"), ("tower.{}.widen", "tower.{}.narrow")),
)
"""A model that has all modules of one of `marks` is one of these"""
