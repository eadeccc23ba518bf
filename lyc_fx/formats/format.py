"""What a file format is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lyc_fx.adapters import AdapterSet


class Format(ABC):
    """One convention for the keys of an adapter file. A format is a final subclass without state."""

    name: ClassVar[str]

    @abstractmethod
    def recognises(self, key: str) -> bool:
        """Whether a file's key is of this convention."""

    @abstractmethod
    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> AdapterSet:
        """The adapters of a file. Raises BadAdapter, listing all that is wrong, with key names."""

    @abstractmethod
    def write(self, adapters: AdapterSet) -> dict[str, Tensor]:
        """The tensors of a file of this convention."""
