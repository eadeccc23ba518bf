"""Wrappers rename modules: adapters find them on every road, in models, checkpoints and files."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lyc_fx
from lyc_fx.errors import BadAdapter
from lyc_fx.naming import Names, Piece
from lyc_fx.naming.wrappers import plain_names, unwrapped

peft = pytest.importorskip("peft")
STRENGTH = 0.7
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 15)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrapped(model: nn.Module) -> nn.Module:
        model.blocks[0] = wrap(model.blocks[0])  # type: ignore[operator]
        return model

    return wrapped


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "compiled inside": inside(compiled),
    "checkpointed inside": inside(checkpoint_wrapper),
    "DataParallel": nn.DataParallel,
    "DataParallel inside": inside(nn.DataParallel),
    "adapted by PEFT": lambda model: peft.get_peft_model(
        model,
        peft.LoraConfig(r=3, target_modules=["head"]),  # its own change is zero
    ),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled in DataParallel": lambda model: nn.DataParallel(inside(compiled)(model)),
}


def factors(separator: str = "_", prefix: str = "lycoris_") -> tuple[dict[str, Tensor], nn.Module]:
    tensors, wanted = {}, Net()
    for position, (name, out) in enumerate((("blocks.0.fc", 6), ("head", 15))):
        rng = torch.Generator().manual_seed(position)
        up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((out, 2), (2, 6)))
        key = prefix + name.replace(".", separator)
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        with torch.no_grad():
            wanted.get_submodule(name).weight += STRENGTH * up @ down
    return tensors, wanted


@pytest.mark.filterwarnings("ignore")  # torch's own, of compiled modules
@pytest.mark.parametrize("prefix", ["lycoris_", ""])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_models(kind: str, prefix: str, tmp_path: Path) -> None:
    tensors, wanted = factors("_" if prefix else ".", prefix)
    adapters = lyc_fx.load(tensors)
    merged = WRAPPED[kind](Net())
    lyc_fx.merge(merged, adapters, STRENGTH)
    torch.testing.assert_close(merged(X), wanted(X), rtol=1e-12, atol=1e-12)
    swapped = WRAPPED[kind](Net())
    live = lyc_fx.live(swapped)
    live.set({adapters: STRENGTH})
    torch.testing.assert_close(swapped(X), wanted(X), rtol=1e-12, atol=1e-12)
    live.restore()
    assert torch.equal(swapped(X), WRAPPED[kind](Net())(X))
    model = WRAPPED[kind](Net())
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "b.safetensors")
    lyc_fx.fold_checkpoint(tmp_path / "b.safetensors", adapters, tmp_path / "o.safetensors", STRENGTH)
    for name, tensor in load_file(tmp_path / "o.safetensors").items():
        if name != "n_averaged" and "lora_" not in name:
            torch.testing.assert_close(tensor, wanted.state_dict()[unwrapped(name)], rtol=1e-12, atol=1e-12)
    if "Data" not in kind and "PEFT" not in kind:
        folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(WRAPPED[kind](Net()), (X,)), adapters, STRENGTH))
        torch.testing.assert_close(folded(X), wanted(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "transformer._orig_mod.",
        "module.",
        "module._orig_mod.",
        "unet.module.",
        "unet.unet.",
        "pipe.dit.",
        "pipe.dit.module.",
        "diffusion_model.transformer.",
        "conditional_transformer.",
        "transformer.base_model.model.",
        "transformer.module.base_model.model._orig_mod.",
    ],
)
@pytest.mark.parametrize("own", ["", "unet.unet.", "pipe.dit.", "model.diffusion_model.", "module.transformer."])
def test_prefixes_of_adapters_and_of_models(prefix: str, own: str, tmp_path: Path) -> None:
    tensors, wanted = factors(".", prefix)
    model = within(own, Net())
    lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    torch.testing.assert_close(model.state_dict(), within(own, wanted).state_dict(), rtol=1e-12, atol=1e-12)
    save_file(within(own, Net()).state_dict(), tmp_path / "base.safetensors")
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", lyc_fx.load(tensors), tmp_path / "o.safetensors", STRENGTH)
    torch.testing.assert_close(load_file(tmp_path / "o.safetensors"), dict(model.state_dict()), rtol=0, atol=0)


def within(prefix: str, model: nn.Module) -> nn.Module:
    """A model at this place of another one."""
    for name in reversed([part for part in prefix.split(".") if part]):
        owner = nn.Module()
        owner.add_module(name, model)
        model = owner
    return model


@pytest.mark.parametrize("prefix", ["lora_unet__orig_mod_", "lycoris_module_", "lora_unet_base_model_model_"])
def test_wrapped_flat_names(prefix: str) -> None:
    flat, wanted = factors("_", prefix)
    model = Net()
    lyc_fx.merge(model, lyc_fx.load(flat), STRENGTH)
    torch.testing.assert_close(model(X), wanted(X), rtol=1e-12, atol=1e-12)


def test_a_segment_of_the_model_s_own() -> None:
    """The model has `module` in a name of its own, once wrapped and once not, and a module of the name without it."""
    names = Names({"_orig_mod.a.module.weight": (2, 3), "_orig_mod.b.module.c.weight": (2, 3)})
    for module in ("a.module", "lycoris_a_module"):
        assert names.find(module, "weight") == [(Piece("_orig_mod.a.module.weight"),)]
    for module in ("b.module.c", "lora_unet_b_module_c", "b.c"):
        assert names.find(module, "weight") == [(Piece("_orig_mod.b.module.c.weight"),)]
    names = Names({"a.module.c.weight": (2, 3), "a.c.weight": (2, 3)})
    for module in ("a.c", "a.module.c", "lycoris_a_c", "lycoris_a_module_c"):
        parameter = module.removeprefix("lycoris_").replace("_", ".") + ".weight"
        assert names.find(module, "weight") == [(Piece(parameter),)]


def test_a_wrapped_model_is_converted_for_under_its_plain_names() -> None:
    tensors, _ = factors()
    made = lyc_fx.convert(lyc_fx.load(tensors), "peft", like=nn.DataParallel(inside(compiled)(Net())))
    assert {each.module for each in made.modules} == {"blocks.0.fc", "head"}


def test_names_that_would_become_one_are_left_apart() -> None:
    names = [
        "a._orig_mod.weight",
        "a._fsdp_wrapped_module.weight",
        "b._orig_mod.weight",
        "b.weight",
        "c._orig_mod.weight",
    ]
    assert plain_names(names) == {"c.weight": "c._orig_mod.weight"}
    assert unwrapped("module.module.weight") == "weight" and unwrapped("a.module.b.weight") == "a.b.weight"
    model = nn.ModuleDict(
        {"a": nn.ModuleDict({"_orig_mod": nn.Linear(6, 15), "_fsdp_wrapped_module": nn.Linear(6, 15)})}
    )
    before = copy.deepcopy(model.state_dict())
    keys = {"a.lora_up.weight": torch.randn(15, 2), "a.lora_down.weight": torch.randn(2, 6)}
    with pytest.raises(BadAdapter, match="no such weight"):
        lyc_fx.merge(model, lyc_fx.load(keys))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
