"""`lyc_fx.register` of formats, names, passes and layer kinds."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from nets import CASES, Case, certain, one, random_for, variant_id
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from twice import FACTORS, Twice

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import random_adapter
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.extensions import Table
from lyc_fx.formats import FORMATS, Format, formats, writer
from lyc_fx.graph.layers.linear import Linear
from lyc_fx.naming import Names
from lyc_fx.naming.names import SCHEMES, schemes
from lyc_fx.naming.scheme import Scheme, rule
from lyc_fx.registering import TABLES


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
