"""Other adapters in the place of a program's own: the numbers of a program spliced with them, and no recompile."""

from dataclasses import replace

import pytest
import torch
from lowering import CONV, EVEN, LINEAR, captured, made
from nets import CASES, VARIANTS, Case, Variant, certain, one, random_for, variant_id
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.adapters.shaped import Additive

ADDMM = next(c for c in CASES if c.name == "addmm")
ROOM = 5


def forms(program: GraphModule) -> list[GraphModule]:
    lowered = lyc_fx.lower(program)
    return [program, lowered, lyc_fx.stage(lowered), lyc_fx.stage(program)]


def close(program: GraphModule, wanted: GraphModule, x: Tensor) -> None:
    torch.testing.assert_close(program(x), wanted(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_the_numbers_are_those_of_a_fresh_splice(variant: Variant) -> None:
    """Of another rank, alpha and strength, and with nothing after that."""
    tried = 0
    for case in (LINEAR, CONV, EVEN, ADDMM):
        first = random_for(variant, case.logical, rank=2, alpha=3.0, dtype=torch.float64)
        if first is None or tried == 2:
            continue
        additive = isinstance(first, Additive)
        other = random_for(variant, case.logical, rank=4 if additive else 2, alpha=1.0, dtype=torch.float64, seed=1)
        assert other is not None
        if first.alpha_bounds:
            other = replace(other, alpha=first.alpha)
        tried, x, base = tried + 1, case.x(), captured(case, torch.float64)
        wanted = lyc_fx.splice(base, one(other), -0.4)
        room = lyc_fx.splice(base, one(first), 0.7, rank=ROOM)
        close(room, lyc_fx.splice(base, one(first), 0.7), x)
        for program in forms(room):
            report = lyc_fx.exchange(program, one(other), -0.4)
            close(program, wanted, x)
            assert lyc_fx.report(program) is report and [row.strength for row in report.applied] == [-0.4]
            lyc_fx.exchange(program, [])
            close(program, base, x)
            lyc_fx.exchange(program, one(first), 0.7)
    assert tried or variant[0].name in ("gain", "norm", "experts", "locon", "loha", "lokr")


def two(first: Adapter | None, second: Adapter | None) -> AdapterSet:
    entries = [Entry(name, "weight", each, (name,)) for name, each in (("0", first), ("1", second)) if each is not None]
    return AdapterSet(tuple(entries), "two.safetensors")


def adapters(seed: int, rank: int = 2) -> tuple[Adapter, Adapter]:
    shapes = Case("", lambda: nn.Linear(6, 15), (2, 6), "n _"), Case("", lambda: nn.Linear(15, 6), (2, 15), "n _")
    first, second = (made("locon", case, rank=rank, seed=seed + n) for n, case in enumerate(shapes))
    return first, second


@pytest.fixture(scope="module")
def base() -> GraphModule:
    torch.manual_seed(0)
    return lyc_fx.capture(nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 6)).double(), (torch.randn(4, 6).double(),))


X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def test_fewer_weights_fewer_sets_and_other_block_weights(base: GraphModule) -> None:
    (a, b), (c, d) = adapters(0), adapters(5, rank=4)
    program = lyc_fx.lower(lyc_fx.splice(base, [(two(a, b), 0.5), (two(c, d), 0.0)], rank=4))
    close(program, lyc_fx.splice(base, two(a, b), 0.5), X)
    blocks = {"0.*": 0.5, "*": -2.0}
    choices: list[list[tuple[AdapterSet, object]]] = [
        [(two(c, d), 0.9), (two(a, b), -0.3)],
        [(two(c, None), 0.9), (two(None, b), -0.3)],
        [(two(None, d), 0.9)],
        [(two(a, b), blocks), (two(c, d), 0.2)],
    ]
    for choice in choices:
        lyc_fx.exchange(program, choice)  # type: ignore[arg-type]
        close(program, lyc_fx.splice(base, choice), X)  # type: ignore[arg-type]


def test_what_has_no_place_is_refused_and_nothing_is_changed(base: GraphModule) -> None:
    (a, b), (c, _) = adapters(0), adapters(5, rank=4)
    program = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(base, two(a, None), 0.5, rank=3)))
    before = program(X)
    lokr = made("lokr", Case("", lambda: nn.Linear(6, 15), (2, 6), "n _"))
    for given, message in (
        (two(a, b), r"1\.weight: no adapter was spliced in there"),
        (two(c, None), r"0\.weight: the adapter has rank 4, and there is room for 3: .* with rank=4"),
        (two(lokr, None), r"0\.weight: lokr of w1 .* \(locon of up .*\): splice the program anew, or use lyc_fx\.live"),
        (two(replace(a, magnitude=torch.ones(15, 1)), None), r"0\.weight: locon of .* magnitude"),  # type: ignore[call-arg]
    ):
        with pytest.raises(lyc_fx.BadAdapter, match=message):
            lyc_fx.exchange(program, given)
        assert torch.equal(program(X), before)
    with pytest.raises(lyc_fx.WrongArgument, match="2 adapter sets, and the program was spliced with 1"):
        lyc_fx.exchange(program, [two(a, None), two(a, None)])
    with pytest.raises(lyc_fx.WrongArgument, match="rank=N"):
        lyc_fx.exchange(lyc_fx.splice(base, two(a, b)), two(a, b))


def test_compiled_it_is_not_compiled_again(base: GraphModule) -> None:
    (a, b), (c, d) = adapters(0), adapters(5, rank=4)
    program = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(base, two(a, b), 0.5, rank=4)))
    compiled = torch.compile(program, fullgraph=True)
    compiled(X)
    with torch.compiler.set_stance("fail_on_recompile"):
        for given, strength in ((two(c, d), 0.9), (two(a, None), -1.0), (two(None, d), 0.0)):
            lyc_fx.exchange(program, given, strength)
            wanted = lyc_fx.splice(base, given, strength) if strength else base
            torch.testing.assert_close(compiled(X), wanted(X), rtol=1e-9, atol=1e-9)


def test_adapters_in_other_dtypes_take_the_place_exactly() -> None:
    """As files hold them: what is stored in 16 bits is widened, so that neither kind is rounded to the other."""
    x, base = EVEN.x(torch.bfloat16), captured(EVEN, torch.bfloat16)
    locon = next(v for v in VARIANTS if v[0].name == "locon")
    first, second = (certain(locon, EVEN.logical, dtype=dtype) for dtype in (torch.bfloat16, torch.float16))
    program = lyc_fx.stage(lyc_fx.splice(base, one(first), 0.7, rank=3))
    for given in (second, first):
        lyc_fx.exchange(program, one(given), 0.3)
        assert torch.equal(program(x), lyc_fx.fold(lyc_fx.splice(base, one(given), 0.3))(x))
