"""Which tensors of a model lie in the same memory."""

from torch import Tensor, nn

from lyc_fx.program import aliases, tensors

_FLAT = "_flat_param"
"""Where FSDP keeps the weights that it lends, as views: what is written to these must stay there"""


def sharing(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter and buffer, by identity, the names of all that share memory with it, its own included."""
    names, every = aliases(model), tensors(model)
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
    """Where a tensor lies in memory: device, first byte, and the byte after the last."""
    try:
        start = tensor.data_ptr()
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    except RuntimeError:  # a subclass, or a sparse tensor, without memory of its own
        return None
    if not start or not tensor.numel():
        return None
    return str(tensor.device), start, start + count * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements are one number in memory, as `expand` leaves them."""
    span = _span(tensor)
    return span is not None and span[2] - span[1] < tensor.numel() * tensor.element_size()
