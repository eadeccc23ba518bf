"""Several adapters: their buffers are numbered as the user gave them, whatever the order of summing."""

import pytest
import torch
from nets import CASES, one, random_for

import lyc_fx
from lyc_fx.algorithms.locon import LoCon as LOCON


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_strength_buffers_stand_in_the_order_given(order: tuple[int, ...]) -> None:
    case = CASES[0]
    sets = [one(random_for((LOCON, LOCON.layouts[0]), case.logical, seed=seed)) for seed in range(3)]
    program = lyc_fx.capture(case.net(), (case.x(),))
    stack = [(sets[i], 0.1 + i) for i in order]
    adapted = lyc_fx.splice(program, stack)
    found = [float(adapted.get_buffer(f"lyc_fx.{position}.strength")) for position in range(3)]
    assert found == [strength for _, strength in stack]
    alone = lyc_fx.splice(program, stack[0][0], strength=stack[0][1])
    for position in (1, 2):
        adapted.get_buffer(f"lyc_fx.{position}.strength").zero_()
    with torch.no_grad():
        torch.testing.assert_close(adapted(case.x()), alone(case.x()), rtol=0, atol=1e-12)
        assert not torch.allclose(alone(case.x()), program(case.x()))
