"""Weights that are not plain tensors in memory, which neither a merge nor a capture can read or write as it must.

They are refused before anything is done, with the way out.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

_DISTRIBUTED = "torch.distributed.tensor."
"""Where DTensor is; importing it takes a while, and not every build of torch has it"""


def foreign(tensor: Tensor) -> str | None:
    """What a weight is instead of a plain tensor, and what to do; None for a plain one."""
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if kind.startswith(_DISTRIBUTED):
        return (
            f"is a {kind}, spread over devices by FSDP2 or tensor parallelism: merge into the model before it is "
            "sharded, or fold the adapter into its checkpoint (lyc-fx fold) and load that"
        )
    if hasattr(tensor, "ds_id"):
        return "is partitioned by DeepSpeed ZeRO 3: merge before deepspeed.initialize, or fold into the checkpoint"
    if not isinstance(tensor, FakeTensor) and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return (
            f"is a {kind}, which is not a plain tensor (quantized?): merge into the model before it is converted, or "
            "fold the adapter into its checkpoint (lyc-fx fold) and convert that"
        )
    return None


def offloaded(module: nn.Module, tensor: Tensor) -> str | None:
    """Why a weight is not where its module says: accelerate puts it there for each call, from a copy of its own."""
    if tensor.is_meta and getattr(getattr(module, "_hf_hook", None), "offload", False):
        return (
            "is offloaded by accelerate, which loads its own copy at each call: take the hooks off "
            "(accelerate.hooks.remove_hook_from_submodules(model)), merge or capture, and offload again"
        )
    return None


def computed(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The weights that hooks compute before each call and nobody can set, with the reason."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            leaf = hook._tensor_name
            yield leaf, f"is pruned: make that permanent, torch.nn.utils.prune.remove(module, {leaf!r}), before merging"
        elif isinstance(hook, SpectralNorm):
            leaf = hook.name
            yield leaf, f"is computed by spectral norm: torch.nn.utils.remove_spectral_norm(module, {leaf!r})"


def scripted(model: nn.Module) -> str | None:
    """The first part of a model that is TorchScript; its name may be empty."""
    found = (name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule))
    return next(found, None)


def flattened(model: nn.Module) -> str | None:
    """Why the weights of a model are not there as such: FSDP keeps them in flat or sharded parameters between calls."""
    for path, module in model.named_modules():
        handle = getattr(module, "_handle", None) if type(module).__name__ == "FullyShardedDataParallel" else None
        kept = handle is not None and (handle.uses_sharded_strategy or not handle._use_orig_params)
        if kept and getattr(module.training_state, "name", "") != "SUMMON_FULL_PARAMS":
            return (
                f"{path or 'the model'} is wrapped by FSDP, which keeps its weights flat: merge inside with "
                "FullyShardedDataParallel.summon_full_params(model), on every rank"
            )
    return None


def shapeless(model: nn.Module) -> str | None:
    """Why a model has weights without a shape, such as those of `nn.LazyLinear`; None where all have one."""
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                return f"{path}.{leaf} has no shape before the model's first call: call it once".lstrip(".")
    return None


def refusal(model: nn.Module) -> str | None:
    """Why a model cannot be captured; None where it can."""
    if (reason := shapeless(model)) is not None:
        return reason
    part = scripted(model)
    if part is not None:
        return (
            f"{part or 'the model'} is TorchScript, whose code is fixed: capture the Python model that it was made of"
        )
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and (reason := foreign(tensor) or offloaded(module, tensor)) is not None:
                return f"{path}.{leaf} {reason}".lstrip(".")
    return None
