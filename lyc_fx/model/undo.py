"""Overwriting a model's tensors in a way that can be undone exactly."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor


def copy_aside(tensor: Tensor) -> Tensor:
    """Copy a tensor: on its GPU if at least half of the GPU's memory stays free, else to the CPU."""
    if tensor.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(tensor.device)
        if free - tensor.nbytes > total // 2:
            return tensor.detach().clone()
    return tensor.detach().to("cpu", copy=True)


def save_for_undo(tensor: Tensor, undo: ExitStack, keep: Callable[[Tensor], Tensor] = copy_aside) -> None:
    """Copy a tensor by `keep`, and push onto `undo` a callback that restores its values from the copy."""
    undo.callback(overwrite, tensor, keep(tensor))


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy values into a tensor, whether or not it is an inference tensor."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # inference tensors need inference mode
        tensor.copy_(value)
