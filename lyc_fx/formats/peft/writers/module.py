"""What a writer of one PEFT method gets, and what it gives."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.errors import Unsupported


@final
@dataclass(frozen=True)
class Module:
    """The entries of one module: adapters of its weight and of its bias, and tensors that replace these."""

    name: str
    own: tuple[Entry, ...]
    bias: tuple[Entry, ...]
    new: tuple[Entry, ...]

    @property
    def adapter(self) -> Adapter:
        """The adapter of the weight."""
        return self.own[0].adapter


class Writer(ABC):
    """One of PEFT's methods."""

    method: ClassVar[str]
    family: ClassVar[type[Adapter]]

    def fault(self, module: Module) -> str | None:
        """Why PEFT cannot hold this module's adapter; None where it can."""
        return f"PEFT's {self.method} has no change of the bias" if module.bias else None

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        """The module's tensors by PEFT's factor names, which for most are those of lyc-fx."""
        adapter = module.adapter
        return {adapter.suffixes[name]: factor for name, factor in adapter.factors().items()}

    def common(self, modules: Sequence[Module]) -> Mapping[str, Tensor]:
        """Tensors of all modules by their whole keys. Raises Unsupported where the modules need several."""
        return {}

    @abstractmethod
    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        """The method's part of the configuration. Raises Unsupported where the modules need several."""


class PlainWriter(Writer):
    """A method without DoRA, and without anything beside the adapted weight."""

    def fault(self, module: Module) -> str | None:
        if "magnitude" in module.adapter.factors():
            return f"PEFT's {self.method} has no DoRA"
        return f"PEFT's {self.method} has no bias" if module.bias or module.new else None


def same(what: str, values: Sequence[Any]) -> Any:
    """The one value. Raises Unsupported where there are several."""
    if len(set(values)) > 1:
        raise Unsupported(f"PEFT has one {what} for all modules, here there are {sorted(set(values))}")
    return values[0]


def ranks_and_alphas(modules: Sequence[Module], rank: Mapping[str, int], alpha: str) -> dict[str, Any]:
    """`r`, alpha under its name, and the patterns of the modules that have others: `alpha / r` is each one's scale."""
    alphas = {m.name: float(m.adapter.scale * rank[m.name]) for m in modules}
    r, most = (Counter(values.values()).most_common(1)[0][0] for values in (rank, alphas))
    return {
        "r": r,
        alpha: most,
        "rank_pattern": {_only(name): value for name, value in rank.items() if value != r},
        "alpha_pattern": {_only(name): value for name, value in alphas.items() if value != most},
    }


def _only(name: str) -> str:
    """A pattern that matches this name and no other, also with something before it."""
    return f"^{re.escape(name)}"
