"""`lyc_fx.register`: what it takes, what it refuses, and that what it was given counts at once."""

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pytest
import torch
from installed import PLUGIN
from nets import CASES, Case, certain, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive, layouts_of
from lyc_fx.algebra import Low, Structure
from lyc_fx.algorithms import FAMILIES, families, random_adapter
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.extensions import Table
from lyc_fx.formats import FORMATS, Format, formats, writer
from lyc_fx.graph.layers.linear import Linear
from lyc_fx.naming import Names
from lyc_fx.naming.names import SCHEMES, schemes
from lyc_fx.naming.scheme import Scheme, rule
from lyc_fx.registering import TABLES, temporarily


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with temporarily():
        yield


@pytest.fixture
def lora_xs(monkeypatch: pytest.MonkeyPatch) -> type[Adapter]:
    monkeypatch.syspath_prepend(str(PLUGIN))
    from lyc_fx_example.lora_xs import LoraXS

    yield LoraXS
    for name in [name for name in sys.modules if name.startswith("lyc_fx_example")]:
        del sys.modules[name]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Twice(Additive):
    """`ΔW = 2 · B · A`."""

    name = "twice"
    suffixes = {"a": "twice_A", "b": "twice_B"}
    variants = {"": {"a": "r in kernel", "b": "out r 1"}}
    layouts = layouts_of(variants)
    rank = property(lambda self: self.a.shape[0])

    a: Tensor
    b: Tensor

    def expression(self) -> Structure:
        return Low(2 * self.b, self.a)


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


FACTORS = {"fc.twice_A": torch.randn(2, 5), "fc.twice_B": torch.randn(4, 2)}


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


class Colons(Format):
    """`fc::A`, of `Twice`, and one key that it only thinks it knows."""

    name = "colons"

    def parse(self, key: str, source: Any) -> tuple[str, str] | None:
        module, found, leaf = key.partition("::")
        if leaf == "odd":
            return module, "no_such_factor"
        return (module, f"twice_{leaf}") if found else ("stolen", "twice_A")

    def write(self, adapters: Any) -> Any:
        raise Unsupported("never")


def test_a_format_reads_what_no_format_of_ours_does() -> None:
    lyc_fx.register(Twice)
    lyc_fx.register(Colons)
    lyc_fx.register(Colons())
    assert [type(each) for each in formats()] == [*map(type, FORMATS), Colons] and type(writer("colons")) is Colons
    assert writer("kohya").name == "lycoris"
    factors = {"fc::A": FACTORS["fc.twice_A"], "fc::B": FACTORS["fc.twice_B"]}
    [entry] = lyc_fx.load(factors).entries
    assert entry.module == "fc" and entry.keys == ("fc::A", "fc::B")
    ours = {"fc.lora_up.weight": torch.randn(4, 2), "fc.lora_down.weight": torch.randn(2, 5)}
    assert [type(each.adapter) for each in lyc_fx.load(ours).entries] == [LoCon]
    with pytest.raises(lyc_fx.BadAdapter, match="no algorithm has the factors no_such_factor"):
        lyc_fx.load({**factors, "fc::odd": torch.ones(2)})


def test_formats_need_a_name_of_their_own() -> None:
    for name in ("peft", "kohya", ""):
        with pytest.raises(WrongArgument, match="name"):
            lyc_fx.register(type("Named", (Colons,), {"name": name}))
    with pytest.raises(WrongArgument, match="names is 'mine', not one of lycoris"):
        lyc_fx.register(type("Named", (Colons,), {"names": "mine"}))
    with pytest.raises(Unsupported, match="there is no format 'nothing': use one of peft"):
        writer("nothing")


def test_names_of_an_architecture() -> None:
    shapes = {"body.0.first.weight": (4, 5), "body.0.second.weight": (5, 4)}
    scheme = Scheme((rule("b.{}.f", "body.{}.first"),), marks=(("body.{}.first", "body.{}.second"),))
    assert not Names(shapes).find("lora_unet_b_0_f", "weight")
    for _ in range(2):
        assert lyc_fx.register(scheme) is scheme
    assert schemes() == (*SCHEMES, scheme)
    [[piece]] = Names(shapes).find("lora_unet_b_0_f", "weight")
    assert piece.parameter == "body.0.first.weight"


class Nothing(PassBase):
    name: ClassVar[str] = "nothing"

    def call(self, gm: Any) -> PassResult:
        return PassResult(gm, False)


def test_a_pass_runs_where_it_is_asked_for_by_name() -> None:
    program = lyc_fx.capture(nn.Linear(3, 3), (torch.randn(2, 3),))
    adapted = lyc_fx.splice(program, one(random_adapter(LoCon, (3, 3)), ""))
    lyc_fx.register(Nothing)
    names = [step.name for step in lyc_fx.history(lyc_fx.lower(adapted))]
    asked = [step.name for step in lyc_fx.history(lyc_fx.lower(adapted, passes=["nothing"]))]
    assert len(asked) == len(names) + 1
    with pytest.raises(WrongArgument, match="there is no pass 'something': there are nothing"):
        lyc_fx.lower(adapted, passes=["something"])
    with pytest.raises(WrongArgument, match="a list of passes, not str"):
        lyc_fx.lower(adapted, passes="nothing")
    with pytest.raises(WrongArgument, match="has no name"):
        lyc_fx.register(type("Unnamed", (Nothing,), {"name": ""}))


@torch.library.custom_op("lyc_fx_tests::affine", mutates_args=())
def affine(input: Tensor, weight: Tensor) -> Tensor:
    return input @ weight.t()


@affine.register_fake
def _(input: Tensor, weight: Tensor) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


AFFINE = torch.ops.lyc_fx_tests.affine.default


class Affine(Linear):
    ops = (AFFINE,)
    bias = None


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 30, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight)


def test_a_layer_kind_gets_chains() -> None:
    x = torch.randn(2, 30, dtype=torch.float64)
    adapters = one(random_adapter(LoCon, (40, 30), rank=2), "layer")
    found = {}
    for registered in (False, True):
        if registered:
            lyc_fx.register(Affine)
        model = nn.Sequential()
        model.add_module("layer", Own())
        torch.manual_seed(1)
        nn.init.normal_(model.layer.weight)
        spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters)
        lowered = lyc_fx.lower(spliced, check=True)
        found[registered] = next(step for step in lyc_fx.history(lowered) if step.name == "distribute").fired
        model = copy.deepcopy(model)
        lyc_fx.merge(model, adapters)
        torch.testing.assert_close(lowered(x), model(x), rtol=1e-9, atol=1e-9)
    assert found == {False: 0, True: 1}


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"ops": ()}, "declares no ops"),
        (
            {"ops": (torch.ops.aten.linear.default,)},
            r"Kind and lyc_fx\.graph.*\.Linear have the same operator",
        ),
        ({"ops": (torch.ops.aten.linear,)}, "is no operator's overload"),
        ({"bias": "offset"}, "has no argument offset"),
    ],
)
def test_layer_kinds_that_cannot_be(declared: Mapping[str, Any], words: str) -> None:
    with pytest.raises(WrongArgument, match=words):
        lyc_fx.register(type("Kind", (Affine,), dict(declared)))


def test_each_thing_is_of_one_kind(lora_xs: type[Adapter]) -> None:
    from lyc_fx_example.slashes import Slashes
    from lyc_fx_example.swish import Swish
    from lyc_fx_example.tower import TOWER

    for thing in (lora_xs, Slashes, Slashes(), Swish, Swish(), TOWER, Affine, Affine()):
        takers: list[Table[Any]] = [table for table in TABLES.values() if table.takes(thing)]
        assert len(takers) == 1
        assert lyc_fx.register(thing) is thing


@pytest.mark.parametrize("case", [case for case in CASES if "norm" not in case.name], ids=variant_id)
def test_the_example_s_family_on_every_kind_of_layer(case: Case, lora_xs: type[Adapter], tmp_path: Any) -> None:
    """Read from a file, spliced, lowered, folded and merged, against the formula in float64."""
    lyc_fx.register(lora_xs)
    adapter = certain((lora_xs, lora_xs.layouts[0]), case.logical)
    save_file({f"layer.{key}": tensor for key, tensor in adapter.written("weight").items()}, tmp_path / "a.safetensors")
    a, core, b = (adapter.factors()[name].double() for name in ("a", "core", "b"))
    change = adapter.alpha / adapter.rank * (b.flatten(1) @ core @ a.flatten(1))
    model, x = case.net(), case.x()
    base = model.layer.weight.detach()
    wanted = base + 0.7 * (change.t() if case.transposed else change.reshape(base.shape))
    program = lyc_fx.capture(model, (x,))
    spliced = lyc_fx.splice(program, tmp_path / "a.safetensors", 0.7)
    folded, lowered = lyc_fx.fold(spliced), lyc_fx.lower(spliced)
    model = copy.deepcopy(model)  # the programs share the weights of the other
    lyc_fx.merge(model, tmp_path / "a.safetensors", 0.7)
    for weight in (model.layer.weight, folded.get_parameter("layer.weight")):
        torch.testing.assert_close(weight, wanted, rtol=1e-12, atol=1e-12)
    for program in (spliced, folded, lowered):
        torch.testing.assert_close(program(x), model(x), rtol=1e-9, atol=1e-9)
    assert random_for((lora_xs, lora_xs.layouts[0]), (5,)) is None, "nothing of a vector"
