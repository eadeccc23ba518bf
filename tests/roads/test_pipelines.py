"""A pipeline takes a file in one line: every prefix to its component, all or nothing; and a program may stand in."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, CaptureError, Unsupported, WrongArgument

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from tests.tiny_pipelines import flux, image, sdxl  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own warnings
STRENGTH = 0.7
TARGETS = {
    "sdxl": {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (
            "unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        "lora_unet_conv_in": ("unet", "conv_in"),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": ("text_encoder", "q_proj"),
        "lora_te2_text_model_encoder_layers_1_mlp_fc1": ("text_encoder_2", "fc1"),
    },
    "flux": {
        "transformer.transformer_blocks.0.attn.to_q": ("transformer", "transformer_blocks.0.attn.to_q"),
        "transformer.single_transformer_blocks.0.proj_mlp": ("transformer", "single_transformer_blocks.0.proj_mlp"),
        "text_encoder.text_model.encoder.layers.1.self_attn.v_proj": ("text_encoder", "v_proj"),
    },
}  # fmt: skip
PIPES = {"sdxl": sdxl, "flux": flux}


def layer(pipe: Any, component: str, path: str) -> nn.Module:
    """The module of this path; of a text encoder, whose names vary with the library's version, the one that ends so."""
    model = pipe.components[component]
    if component in ("unet", "transformer"):
        return model.get_submodule(path)
    last = {"q_proj": "layers.0.self_attn.q_proj", "v_proj": "layers.1.self_attn.v_proj", "fc1": "layers.1.mlp.fc1"}
    [found] = [m for name, m in model.named_modules() if name.endswith(last[path])]
    return found


def adapters(kind: str, pipe: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors, and the change of each weight."""
    rng, tensors, changes = torch.Generator().manual_seed(3), {}, {}
    for name, (component, path) in TARGETS[kind].items():
        weight = layer(pipe, component, path).get_parameter("weight")
        up = torch.randn(weight.shape[0], 2, *(1 for _ in weight.shape[2:]), generator=rng)
        down = torch.randn(2, *weight.shape[1:], generator=rng) / 4
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}
        changes[name] = (STRENGTH * 1.5 * up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
    return tensors, changes


@pytest.mark.parametrize("kind", PIPES)
def test_merge_live_and_restore(kind: str) -> None:
    pipe = PIPES[kind]()
    base = image(pipe)
    tensors, changes = adapters(kind, pipe)
    wanted = copy.deepcopy(pipe)
    for name, (component, path) in TARGETS[kind].items():
        weight = layer(wanted, component, path).get_parameter("weight")
        weight.data.copy_(weight.double() + changes[name])
    live = lyc_fx.live(pipe)
    report = live.set(tensors, STRENGTH)
    assert sorted(row.target.partition(".")[0] for row in report.applied) == sorted(
        c for c, _ in TARGETS[kind].values()
    )
    swapped = image(pipe)
    torch.testing.assert_close(swapped, image(wanted), rtol=1e-5, atol=1e-5)
    assert (swapped - base).abs().max() > 1e-3
    live.restore()
    assert torch.equal(image(pipe), base)
    assert lyc_fx.merge(pipe, tensors, STRENGTH).changes == report.changes
    assert torch.equal(image(pipe), swapped)
    for name, (component, path) in TARGETS[kind].items():
        merged, want = (layer(each, component, path).get_parameter("weight") for each in (pipe, wanted))
        torch.testing.assert_close(merged, want, rtol=1e-6, atol=1e-6)
        assert name in {row.module for row in report.applied}


def test_the_report_is_split_by_component() -> None:
    pipe = sdxl()
    text = str(lyc_fx.merge(pipe, adapters("sdxl", pipe)[0]))
    assert "4 adapters on 4 weights, 0 keys unused (text_encoder 1, text_encoder_2 1, unet 2)" in text


def test_all_or_nothing() -> None:
    pipe = sdxl()
    before = {n: {k: t.clone() for k, t in c.state_dict().items()} for n, c in parts(pipe).items()}
    tensors, _ = adapters("sdxl", pipe)
    tensors["lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_up.weight"][0, 0] = 1e39 * 0 + 3e38
    with pytest.raises(BadAdapter, match=r"text_encoder_2\..*beyond the range"):
        lyc_fx.merge(pipe, tensors, 1e6)
    for name, part in parts(pipe).items():
        assert all(torch.equal(t, before[name][k]) for k, t in part.state_dict().items())


def parts(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def test_a_part_of_the_pipeline_is_told_where_the_rest_belongs() -> None:
    pipe = sdxl()
    tensors, _ = adapters("sdxl", pipe)
    with pytest.raises(BadAdapter) as raised:
        lyc_fx.merge(pipe.unet, tensors)
    assert str(raised.value).splitlines() == [
        "2 adapters cannot be applied:",
        "  <tensors>: 1 adapter of another component, lora_te1_*, such as "
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "  <tensors>: 1 adapter of another component, lora_te2_*, such as lora_te2_text_model_encoder_layers_1_mlp_fc1",
        "These adapters are for other components of a pipeline: give the whole pipeline (lyc_fx.merge(pipe, …)), "
        'or leave them out: adapters.exclude("lora_te1_*", "lora_te2_*") (command line: --exclude "lora_te1_*" '
        '--exclude "lora_te2_*").',
    ]
    assert len(lyc_fx.merge(pipe.unet, lyc_fx.load(tensors).exclude("lora_te1_*", "lora_te2_*")).applied) == 2


class Recorder:
    """The arguments with which a pipeline calls its denoiser."""

    def __init__(self, model: nn.Module) -> None:
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._model, self._forward = model, model.forward

    def __enter__(self) -> "Recorder":
        self._model.forward = self._record
        return self

    def _record(self, *args: Any, **kwargs: Any) -> Any:
        self.call = args, kwargs
        return self._forward(*args, **kwargs)

    def __exit__(self, *_: object) -> None:
        del self._model.forward


@pytest.mark.parametrize(("kind", "part"), [("sdxl", "unet"), ("flux", "transformer")])
def test_a_program_stands_in_for_the_denoiser(kind: str, part: str) -> None:
    pipe = PIPES[kind]()
    model = getattr(pipe, part)
    chosen = lyc_fx.load(adapters(kind, pipe)[0]).select("lora_unet_*", "transformer.*")
    base = image(pipe)
    with Recorder(model) as recorder:
        image(pipe)
    program = lyc_fx.splice(lyc_fx.capture(model, *recorder.call), chosen, STRENGTH)
    for each in (lyc_fx.fold(program, check=True), lyc_fx.lower(program, check=True)):
        instead = lyc_fx.stand_in(each, model)
        assert (instead.config, instead.dtype, instead.device) == (model.config, torch.float32, torch.device("cpu"))
        assert inspect.signature(instead.forward) == inspect.signature(model.forward)
        setattr(pipe, part, instead)
        found = image(pipe)
        with pytest.raises(CaptureError):
            image(pipe, 24)
        setattr(pipe, part, model)
        with lyc_fx.live(model) as live:
            live.set(chosen, STRENGTH)
            torch.testing.assert_close(found, image(pipe), rtol=1e-4, atol=1e-5)
        assert (found - base).abs().max() > 1e-3
        with pytest.raises(Unsupported, match="captured program"):
            lyc_fx.merge(instead, chosen)


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 4))
        self.config = {"size": 3}

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        """Scaled."""
        return self.inner(x) * scale

    def twice(self, x: Tensor) -> Tensor:
        return self(x) + self(x)

    @property
    def width(self) -> int:
        return self.inner[0].out_features


def test_methods_see_the_program_and_parts_are_only_looked_at() -> None:
    torch.manual_seed(0)
    model, x = Asks(), torch.randn(2, 6)
    tensors = {"inner.0.lora_up.weight": torch.randn(4, 2), "inner.0.lora_down.weight": torch.randn(2, 6)}
    program = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), tensors, STRENGTH))
    instead = lyc_fx.stand_in(program, model)
    for each in (instead, copy.deepcopy(instead), torch.compile(instead, backend="eager", fullgraph=True)):
        assert torch.equal(each(x), program(x)) and torch.equal(each(x, scale=1.0), program(x))
    assert torch.equal(instead.twice(x), 2 * program(x)) and not torch.allclose(program(x), model(x))
    assert (instead.width, instead.config, instead.inner[0].in_features) == (4, {"size": 3}, 6)
    assert len(instead.inner) == 1 and copy.deepcopy(instead).inner[0].weight is model.inner[0].weight
    assert (type(instead).__name__, instead.forward.__doc__) == ("Asks", "Scaled.")
    assert list(instead.state_dict()) == list(model.state_dict())
    with pytest.raises(Unsupported, match="Linear belongs to the base model, without adapters"):
        instead.inner[0](x)
    with pytest.raises(AttributeError, match="nothing"):
        instead.nothing  # noqa: B018
    with pytest.raises(WrongArgument, match=r"not Asks: bring it through lyc_fx\.capture"):
        lyc_fx.stand_in(model, model)
    with pytest.raises(WrongArgument, match="the one that the program was captured from"):
        lyc_fx.stand_in(program, program)
