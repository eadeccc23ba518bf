"""Caches and output classes of transformers, as inputs and as outputs."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.outputs import register
from tests.zoo.adapted import called, pairs, tensors
from tests.zoo.case import Case
from tests.zoo.roads import SIZES, same
from tests.zoo.transformers_models import CASES

LLAMA, T5 = (next(case for case in CASES if case.name == name) for name in ("llama", "t5"))


def _decode(case: Case, model: torch.nn.Module, size: int) -> dict[str, Any]:
    """The inputs of a decoding step: two tokens, and the cache of those before."""
    inputs = case.call(size)
    return {"input_ids": inputs["input_ids"][:, :2], "past_key_values": called(model, inputs).past_key_values}


@cache
def _decoder() -> tuple[torch.nn.Module, GraphModule, dict[str, Any]]:
    """A model, its program of a decoding step, and the example of the capture; the step is captured once."""
    model = LLAMA.model()
    inputs = _decode(LLAMA, model, 0)
    return model, lyc_fx.capture(model, (), inputs, "auto"), inputs


def test_decoding_step() -> None:
    model, captured, _ = _decoder()
    for size in SIZES:
        expected = called(model, _decode(LLAMA, model, size))
        result = called(captured, _decode(LLAMA, model, size))
        assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
        for eager, graph in pairs(expected, result):
            same(eager, graph, exact=True)


def test_capture_leaves_the_example_alone() -> None:
    model, _, step = _decoder()
    first = {**LLAMA.call(0), "past_key_values": hf.DynamicCache(config=model.config)}
    lyc_fx.capture(model, (), first, "auto")
    for inputs, length in ((copy.deepcopy(step), LLAMA.call(0)["input_ids"].shape[1]), (first, 0)):
        past = inputs["past_key_values"]
        assert past.get_seq_length() == length
        called(model, inputs)
        assert past.get_seq_length() == length + inputs["input_ids"].shape[1]


def test_names_reach_into_a_cache() -> None:
    model = LLAMA.model()
    shapes = {"input_ids": "batch new", "past_key_values": "batch _ past _"}
    captured = lyc_fx.capture(model, (), _decode(LLAMA, model, 0), shapes)
    keys = captured.graph.find_nodes(op="placeholder")[1].meta["val"]
    assert [isinstance(size, torch.SymInt) for size in keys.shape] == [True, False, True, False]


def test_encoder_decoder_cache_and_model_output_as_inputs() -> None:
    model = T5.model()

    def step(size: int) -> dict[str, Any]:
        inputs = T5.call(size)
        output = called(model, inputs)
        inputs["decoder_input_ids"] = inputs["decoder_input_ids"][:, :2]
        encoded = hf.modeling_outputs.BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
        del inputs["input_ids"]
        return {**inputs, "encoder_outputs": encoded, "past_key_values": output.past_key_values}

    captured = lyc_fx.capture(model, (), step(0), "auto")
    for size in SIZES:
        for eager, graph in pairs(called(model, step(size)), called(captured, step(size))):
            same(eager, graph, exact=True)


def _sliding() -> hf.PreTrainedModel:
    return hf.MistralForCausalLM(
        hf.MistralConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=4,
        )
    )


def test_sliding_window_cache_counts() -> None:
    case = Case("mistral", _sliding, LLAMA.inputs)
    model = case.model()
    captured = lyc_fx.capture(model, (), case.call(0), "auto")
    expected, result = called(model, case.call(1)), called(captured, case.call(1))
    assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 7
    # the eager cache keeps its count as an attribute, the program returns it with its tensors
    for eager, graph in zip(tensors(expected), tensors(result), strict=True):
        same(eager, graph, exact=True)
    more = {"input_ids": torch.tensor([[3]] * 3)}
    after = [called(model, {**more, "past_key_values": copy.deepcopy(o.past_key_values)}) for o in (expected, result)]
    same(after[0].logits, after[1].logits, exact=True)


def test_count_in_an_input_is_guarded() -> None:
    case = Case("mistral", _sliding, LLAMA.inputs)
    model = case.model()
    captured = lyc_fx.capture(model, (), _decode(case, model, 0), "auto")
    expected = called(model, _decode(case, model, 0)).logits
    same(expected, called(captured, _decode(case, model, 0)).logits, exact=True)
    with pytest.raises(CaptureError, match="cumulative_length is 7; the program was captured with 5"):
        called(captured, _decode(case, model, 1))


@pytest.mark.parametrize(
    "more", [{"return_dict": False}, {"output_hidden_states": True}, {"use_cache": False}], ids=str
)
def test_flags(more: dict[str, bool]) -> None:
    model, inputs = LLAMA.model(), LLAMA.call(1)
    captured = lyc_fx.capture(model, (), {**LLAMA.call(0), **more}, "auto")
    expected, result = called(model, {**inputs, **more}), called(captured, {**inputs, **more})
    register(expected)
    assert type(result) is type(expected)
    for eager, graph in pairs(expected, result):
        same(eager, graph, exact=True)
