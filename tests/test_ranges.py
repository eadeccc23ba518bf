"""What a .pt2 says of the sizes that may vary: the ranges and relations of the capture, through each rewriting."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import lyc_fx

STRENGTH = 0.7


class Layers(nn.Module):
    """Two inputs that nothing but the caller relates, and a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.conv = nn.Linear(6, 9).double(), nn.Conv1d(6, 9, 2, stride=2).double()

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return self.fc(a), self.fc(b), self.conv(c.reshape(2, 6, -1, 2).flatten(2))


INPUTS = tuple(torch.randn(s, dtype=torch.float64) for s in ((4, 6), (4, 6), (2, 6, 12)))
ADAPTERS = {
    name: torch.randn(s, dtype=torch.float64)
    for layer, kernel in (("fc", ()), ("conv", (2,)))
    for name, s in ((f"lycoris_{layer}.lora_up.weight", (9, 2, *(1 for _ in kernel))),
                    (f"lycoris_{layer}.lora_down.weight", (2, 6, *kernel)))
}  # fmt: skip


def bounds(program: ExportedProgram, inputs: int = 3) -> list[Any]:
    """The range of every size of the inputs, and which of them are one symbol."""
    found = []
    for node in list(program.graph.find_nodes(op="placeholder"))[-inputs:]:
        for size in node.meta["val"].shape:
            if not isinstance(size, int):
                interval = program.range_constraints[size.node.expr]
                found.append((str(size.node.expr), str(interval.lower), str(interval.upper)))
    names = list(dict.fromkeys(name for name, _, _ in found))
    return [(names.index(name), *rest) for name, *rest in found]


def rewritten(program: Any, path: Path) -> ExportedProgram:
    adapted = lyc_fx.splice(lyc_fx.capture(program), lyc_fx.load(ADAPTERS), STRENGTH)
    lyc_fx.export(lyc_fx.fold(adapted), path)
    return torch.export.load(path)


def accepts(program: ExportedProgram, *sizes: tuple[int, ...]) -> bool:
    inputs = [torch.randn(size, dtype=torch.float64) for size in sizes]
    try:
        found = program.module()(*inputs)
    except AssertionError as error:
        assert "Guard failed" in str(error)
        return False
    assert found[0].shape[0] == sizes[0][0]
    return True


def test_ranges_and_relations_are_kept(tmp_path: Path) -> None:
    batch, half = Dim("batch", min=1, max=64), Dim("half", min=3, max=9)
    shapes = ({0: batch}, {0: batch}, {2: 2 * half})
    users = torch.export.export(Layers(), INPUTS, dynamic_shapes=shapes, strict=False)
    once = rewritten(users, tmp_path / "once.pt2")
    twice = rewritten(once, tmp_path / "twice.pt2")
    wanted = [(0, "1", "64"), (0, "1", "64"), (1, "6", "18")]
    for program in (users, once, twice):
        assert bounds(program) == wanted
        for first, second, third, fine in (
            (1, 1, 6, True),
            (64, 64, 18, True),
            (65, 65, 8, False),
            (3, 4, 8, False),  # nothing in the graph asks for this
            (3, 3, 9, False),
            (3, 3, 4, False),
            (3, 3, 20, False),
        ):
            sizes = (first, 6), (second, 6), (2, 6, third)
            assert accepts(program, *sizes) == fine, sizes
    torch.testing.assert_close(twice.module()(*INPUTS)[0] - Layers()(*INPUTS)[0], twice_changed(), rtol=0, atol=1e-12)


def twice_changed() -> Tensor:
    up, down = (ADAPTERS[f"lycoris_fc.lora_{side}.weight"] for side in ("up", "down"))
    return 2 * STRENGTH * INPUTS[0] @ (up @ down).mT


def test_what_auto_found_out_is_kept(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.positions = nn.Linear(6, 9).double(), nn.Parameter(torch.randn(20, 6).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.positions[: x.shape[1]])

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    program = lyc_fx.capture(Table(), (x,), dynamic_shapes="auto")
    lyc_fx.export(program, tmp_path / "auto.pt2")
    stored = torch.export.load(tmp_path / "auto.pt2")
    assert bounds(stored, 1) == [(0, "2", "int_oo"), (1, "2", "20")]
    again = lyc_fx.capture(stored)
    assert again(x[:1].expand(7, 5, 6)).shape == (7, 5, 9)


class Joined(nn.Module):
    """Its code asks for something of two sizes together that the graph does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 9).double()

    def forward(self, a: Tensor, *, more: dict[str, list[Tensor]]) -> Tensor:
        joined = torch.cat([a, more["b"][1]])
        assert joined.shape[0] <= 30
        return self.fc(joined)


def test_what_the_code_asks_for_besides(tmp_path: Path) -> None:
    def accepts(program: ExportedProgram, a: int, b: int) -> bool:
        first, second = (torch.randn(rows, 6, dtype=torch.float64) for rows in (a, b))
        try:
            found = program.module()(first, more={"b": [torch.zeros(3), second]})
        except AssertionError as error:
            assert "Guard failed" in str(error)
            return False
        assert found.shape[0] == a + b
        return True

    shapes = {"a": {0: Dim.AUTO(max=25)}, "more": {"b": [None, {0: Dim.AUTO(min=3)}]}}
    example = {"more": {"b": [torch.zeros(3), INPUTS[1]]}}
    users = torch.export.export(Joined(), INPUTS[:1], example, dynamic_shapes=shapes, strict=False)
    programs = [users]
    for number, captured in enumerate((users, Joined(), None)):
        shapes_ = shapes if isinstance(captured, Joined) else None
        given = (INPUTS[:1], example, shapes_) if isinstance(captured, Joined) else ()
        program = lyc_fx.capture(programs[-1] if captured is None else captured, *given)
        lyc_fx.export(program, tmp_path / f"{number}.pt2")
        programs.append(torch.export.load(tmp_path / f"{number}.pt2"))
    for a, b, fine in ((20, 5, True), (26, 3, False), (5, 2, False), (20, 11, False)):
        assert [accepts(program, a, b) for program in programs] == [fine] * 4, (a, b)


@pytest.mark.parametrize("static", [True, False])
def test_numbers_among_the_inputs(static: bool, tmp_path: Path) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 9).double()

        def forward(self, x: Tensor, n: int) -> Tensor:
            return self.fc(x).narrow(1, 0, n) if static else self.fc(x) * n

    x = INPUTS[0]
    users = torch.export.export(
        Cut(), (x, 3), dynamic_shapes=({0: Dim("b", max=8)}, None if static else Dim.DYNAMIC), strict=False
    )
    lyc_fx.export(lyc_fx.capture(users), tmp_path / "cut.pt2")
    stored = torch.export.load(tmp_path / "cut.pt2").module()
    number = 3 if static else 5
    assert torch.equal(stored(x, number), users.module()(x, number))


def test_numbers_that_are_read_out_of_tensors(tmp_path: Path) -> None:
    """They have no bounds, and no place among the inputs' sizes."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(6, 9).double()

        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x) * n.item(), self.fc(x[x.sum(1) > 0])

    model, n = Chosen(), torch.tensor(-3)
    program = lyc_fx.capture(model, (INPUTS[0], n), dynamic_shapes="auto")
    lyc_fx.export(program, tmp_path / "chosen.pt2")
    stored = torch.export.load(tmp_path / "chosen.pt2").module()
    inputs = torch.randn(7, 6, dtype=torch.float64)
    for found in (program, lyc_fx.capture(torch.export.load(tmp_path / "chosen.pt2")), stored):
        for ours, theirs in zip(found(inputs, n), model(inputs, n), strict=True):
            assert torch.equal(ours, theirs)
