"""Recognizing weights that are not plain tensors in memory, which neither a merge nor a capture can handle.

They are refused before anything is done, with advice on what to do instead. The reasons returned here follow the name
of the weight in a message.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from lyc_fx.base.quantizers import quantized

_DISTRIBUTED = "torch.distributed.tensor."
"""The module of DTensor, recognized by name: importing it is slow, and some builds of torch lack it"""


def foreign_reason(tensor: Tensor) -> str | None:
    """Return what a weight is instead of a plain tensor, and what to do; None for a plain tensor."""
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


def offload_reason(module: nn.Module, tensor: Tensor) -> str | None:
    """Return why a module does not hold its own weight, and what to do; None if it does.

    accelerate puts offloaded weights into the module only for each call, from a copy of its own.
    """
    if tensor.is_meta and getattr(getattr(module, "_hf_hook", None), "offload", False):
        return (
            "is offloaded by accelerate, which loads its own copy at each call: take the hooks off "
            "(accelerate.hooks.remove_hook_from_submodules(model)), merge or capture, and offload again"
        )
    return None


def hook_computed(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the weights that hooks compute before each call, so that they cannot be set, each with the reason."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            leaf = hook._tensor_name
            yield (
                leaf,
                "is pruned: make the pruning permanent before merging, by "
                f"torch.nn.utils.prune.remove(module, {leaf!r})",
            )
        elif isinstance(hook, SpectralNorm):
            leaf = hook.name
            yield (
                leaf,
                "is computed by spectral norm: remove it before merging, by "
                f"torch.nn.utils.remove_spectral_norm(module, {leaf!r})",
            )


def find_scripted(model: nn.Module) -> str | None:
    """Return the path of the first part of a model that is TorchScript (empty for the model itself), or None."""
    found = (name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule))
    return next(found, None)


def flattening_reason(model: nn.Module) -> str | None:
    """Return why a model's weights are not available, and what to do: FSDP keeps them flat or sharded between calls."""
    for path, module in model.named_modules():
        handle = getattr(module, "_handle", None) if type(module).__name__ == "FullyShardedDataParallel" else None
        kept = handle is not None and (handle.uses_sharded_strategy or not handle._use_orig_params)
        if kept and getattr(module.training_state, "name", "") != "SUMMON_FULL_PARAMS":
            return (
                f"{path or 'the model'} is wrapped by FSDP, which keeps its weights flat: merge inside the context "
                "`with FullyShardedDataParallel.summon_full_params(model)`, on every rank"
            )
    return None


def shapeless_reason(model: nn.Module) -> str | None:
    """Return which weight has no shape yet, as in `nn.LazyLinear`, and what to do; None if all have one."""
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                return f"{path}.{leaf} has no shape before the model's first call: call it once".lstrip(".")
    return None


def capture_refusal(model: nn.Module) -> str | None:
    """Return why a model cannot be captured, or None if nothing here prevents it."""
    if (reason := shapeless_reason(model)) is not None:
        return reason
    part = find_scripted(model)
    if part is not None:
        return (
            f"{part or 'the model'} is TorchScript, whose code is fixed: capture the Python model that it was made from"
        )
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            held = quantized(module, leaf)
            reason = None if tensor is None else foreign_reason(tensor) or offload_reason(module, tensor)
            if held is not None or reason is not None:
                return f"{path}.{leaf} {reason if held is None else held.advice}".lstrip(".")
    return None
