"""Capture follows the model's training flag, and a training program yields the evaluation program."""

import copy

import pytest
import torch

import lyc_fx
from tests.zoo import diffusers_models, torch_models, transformers_models
from tests.zoo.adapted import adapters_for, called, pairs
from tests.zoo.case import Case
from tests.zoo.roads import SIZES, STRENGTH, same, weights_of

_NAMES = ("bert", "gpt2", "t5", "resnet", "efficientnet", "attention")
_ALL = (*diffusers_models.CASES, *transformers_models.CASES, *torch_models.CASES)


@pytest.mark.parametrize("case", [case for case in _ALL if case.name in _NAMES], ids=str)
def test_training_program(case: Case) -> None:
    model = case.model(train=True)
    captured = lyc_fx.capture(model, (), case.call(0), case.shapes, check=True)
    assert captured.training
    for size in SIZES:
        # both update running statistics, the program those of the model that it was captured from
        eager, program = copy.deepcopy(model), copy.deepcopy(captured)
        torch.manual_seed(5)
        expected = eager(**case.call(size))
        torch.manual_seed(5)
        for one, other in pairs(expected, program(**case.call(size))):
            same(one, other, exact=True)
        for name, buffer in eager.named_buffers():
            same(buffer, program.get_buffer(name), exact=True)

    evaluated = lyc_fx.evaluate(captured)
    assert lyc_fx.history(evaluated)[-1].fired > 0
    assert not evaluated.training and captured.training
    model.eval()
    for size in SIZES:
        for one, other in pairs(called(model, case.call(size)), called(evaluated, case.call(size))):
            same(one, other, exact=case.exact)


def test_evaluation_program_of_adapted_training_program() -> None:
    """An adapted training program evaluates to what the live road makes of the model in eval mode."""
    case = next(case for case in _ALL if case.name == "resnet")
    model = case.model(train=True)
    adapters = adapters_for(weights_of(case, model), torch.float64)
    captured = lyc_fx.capture(model, (), case.call(0), case.shapes)
    folded = lyc_fx.fold(lyc_fx.evaluate(lyc_fx.splice(captured, adapters, STRENGTH)), check=True)
    lyc_fx.merge(model, adapters, STRENGTH)
    model.eval()
    for one, other in pairs(called(model, case.call(1)), called(folded, case.call(1))):
        same(one, other, exact=True)
