"""Which tensors of a model share memory."""

from collections import defaultdict

from torch import Tensor, nn

from lyc_fx.graph.program import BANK, tensors

_FLAT = "_flat_param"
"""The flat parameter of FSDP, of which the weights are views on purpose: writing to a weight must write to it"""


def find_shared(model: nn.Module) -> dict[int, list[str]]:
    """Return, for the `id` of each parameter and buffer, the names of all that share memory with it, and its own.

    What lies beside layers for attached adapters is left out.
    """
    every = {name: tensor for name, tensor in tensors(model).items() if f".{BANK}." not in f".{name}"}
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in every.items():
        names[id(tensor)].append(name)
    stored = {id(tensor): tensor for name, tensor in every.items() if name.rpartition(".")[2] != _FLAT}
    spans = sorted((span, key) for key, tensor in stored.items() if (span := _span(tensor)) is not None)
    groups = {key: list(group) for key, group in names.items()}
    device, reached, group = "", 0, list[str]()
    for (where, start, end), key in spans:
        if where != device or start >= reached:
            device, reached, group = where, end, groups[key]
        else:
            reached = max(reached, end)
            group += names[key]
            groups[key] = group
    return groups


def _span(tensor: Tensor) -> tuple[str, int, int] | None:
    """Return device, first byte, and the byte after the last, of a tensor; None if it has no memory."""
    try:
        start = tensor.data_ptr()
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    except RuntimeError:  # a subclass, or a sparse tensor, without memory of its own
        return None
    if not start or not tensor.numel():
        return None
    return str(tensor.device), start, start + count * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool:
    """Return whether several elements are the same number in memory, as in a result of `expand`."""
    span = _span(tensor)
    return span is not None and span[2] - span[1] < tensor.numel() * tensor.element_size()
