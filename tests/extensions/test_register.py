"""`lyc_fx.register` of algorithms: what it takes, what it refuses, and that what it was given counts at once."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from twice import FACTORS, Twice

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Structure
from lyc_fx.algorithms import FAMILIES, families
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import WrongArgument
from lyc_fx.formats import Format
from lyc_fx.registering import temporarily


def variant(**declared: Any) -> type[Adapter]:
    """A family that declares some things otherwise than `Twice`."""
    body = {
        "__module__": __name__,
        "__annotations__": {"a": Tensor, "b": Tensor},
        "name": "other",
        "suffixes": {"a": "other_A", "b": "other_B"},
        "layouts": Twice.layouts,
        "variants": Twice.variants,
        "expression": Twice.expression,
    }
    return dataclass(frozen=True, eq=False, kw_only=True)(type("Other", (Additive,), body | declared))


def test_a_family_is_read_as_soon_as_it_is_registered() -> None:
    with pytest.raises(lyc_fx.BadAdapter, match="known adapter format"):
        lyc_fx.load(FACTORS)
    assert lyc_fx.register(Twice) is Twice
    assert set(families()) == {*FAMILIES, Twice}
    [entry] = lyc_fx.load(FACTORS).entries
    assert type(entry.adapter) is Twice
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(5, 4).double())
    wanted = model.fc.weight.detach() + 2 * FACTORS["fc.twice_B"].double() @ FACTORS["fc.twice_A"].double()
    lyc_fx.merge(model, FACTORS)
    torch.testing.assert_close(model.fc.weight, wanted, rtol=1e-12, atol=1e-12)


def test_it_is_forgotten_where_it_was_registered_for_a_while() -> None:
    with temporarily():
        lyc_fx.register(Twice)
    assert families() == FAMILIES
    with pytest.raises(lyc_fx.BadAdapter):
        lyc_fx.load(FACTORS)


def test_the_same_again_changes_nothing_and_a_new_version_takes_its_place() -> None:
    for _ in range(2):
        lyc_fx.register(Twice)
    lyc_fx.register(LoCon)
    assert len(families()) == len(FAMILIES) + 1
    first, second = variant(), variant()
    lyc_fx.register(first)
    lyc_fx.register(second)
    assert second in families() and first not in families(), "as where a cell of a notebook runs again"


def test_the_order_of_registering_means_nothing() -> None:
    found = []
    for order in ((Twice, variant()), (variant(), Twice)):
        with temporarily():
            for family in order:
                lyc_fx.register(family)
            found.append([family.name for family in families()])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"name": "locon"}, r"Other and lyc_fx\.algorithms\.locon\.LoCon have the same name, 'locon'"),
        ({"name": ""}, "has no name"),
        ({"suffixes": {"a": "hada_w1_a", "b": "x_B"}}, r"its key hada_w1_a is, .* of lyc_fx\.algorithms\.loha\.LoHa"),
        ({"suffixes": {"a": "x.lora_up.weight", "b": "x_B"}}, r"ends like, lora_up\.weight of .*LoCon"),
        ({"suffixes": {"a": "alpha", "b": "x_B"}}, "the key alpha has a meaning"),
        ({"suffixes": {"a": "x_A", "b": "x_A"}}, "two of its fields have the key x_A"),
        ({"suffixes": {"a": "x_A"}}, "b, of which suffixes say no key"),
        ({"suffixes": {"a": "x_A", "b": "x_B", "c": "x_C"}}, "suffixes name c, of which there is no field"),
        ({"suffixes": {}}, "declares no suffixes"),
        ({"layouts": ()}, "declares no layouts"),
        ({"layouts": (frozenset({"a"}),)}, "no layout has b"),
        ({"layouts": (frozenset({"a", "b"}), frozenset({"a"}))}, "b may be absent, but the field has no default"),
        ({"layouts": (frozenset({"a", "b", "d"}),)}, "layouts name d, of which there is no field"),
        ({"vectors": frozenset({"v"})}, "vectors name v"),
        ({"variants": {"": {"z": "r in", "b": "out r"}}}, "variants name z"),
    ],
)
def test_a_family_that_contradicts_itself_or_another_is_refused(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongArgument, match=words):
        lyc_fx.register(variant(**declared))
    assert families() == FAMILIES


def test_what_is_abstract_or_no_dataclass_or_something_else_is_refused() -> None:
    class Bare(Twice.__base__):  # type: ignore[misc,name-defined]
        name = "bare"

        def expression(self) -> Structure:
            raise NotImplementedError

    for thing, words in (
        (Adapter, "is abstract: it has no .*action"),
        (Format, "is abstract"),
        (Bare, "it is no dataclass"),
        (Bare(), "is nothing that can be registered"),
        (3, "int is nothing that can be registered: an algorithm"),
        (nn.Linear, "is nothing that can be registered"),
    ):
        with pytest.raises(WrongArgument, match=words):
            lyc_fx.register(thing)


def test_our_own_families_declare_what_is_asked_of_others() -> None:
    from lyc_fx.adapters import declared

    wanted = {"ia3": ["on_input may be absent, but the field has no default"]}
    for family in FAMILIES:
        assert list(declared._faults(family)) == wanted.get(family.name, [])
