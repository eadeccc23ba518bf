"""The scale that a training's configuration states for files that have no alpha in them."""

from torch import Tensor

from lyc_fx.formats.format import Source
from lyc_fx.formats.peft.methods import refuse_unreadable
from lyc_fx.formats.reading.layouts import with_trained_scale


def stated_scale(module: str, group: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """A module's tensors, with alpha as the configuration has it (PEFT's rule) unless the file has one itself.

    Raises Unsupported for a configuration of something else than these keys can say.
    """
    config, names = source.configuration(module)
    if config is None or "alpha" in group:
        return group
    refuse_unreadable(source.name, config)
    return with_trained_scale(group, config, *names)
