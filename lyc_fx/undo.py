"""Writing to a model's tensors so that it can be undone, to the bit."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor


def apart(tensor: Tensor) -> Tensor:
    """A copy: where the tensor lies, or on the CPU where less than half of a GPU's memory would stay free."""
    if tensor.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(tensor.device)
        if free - tensor.nbytes > total // 2:
            return tensor.detach().clone()
    return tensor.detach().to("cpu", copy=True)


def preserved(tensor: Tensor, undo: ExitStack, keep: Callable[[Tensor], Tensor] = apart) -> None:
    """Put on the stack what gives a tensor its values back, from a copy."""
    undo.callback(overwrite, tensor, keep(tensor))


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy values into a tensor of any mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # one may be written in its own mode only
        tensor.copy_(value)
