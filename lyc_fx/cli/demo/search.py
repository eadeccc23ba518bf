"""Code search: finding a signature by its docstring, by cosine similarity of sentence embeddings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lyc_fx.cli.demo.data import MAX_TOKENS
from lyc_fx.cli.progress import counting

_BATCH = 64

Model = Callable[..., Any]
"""Takes `input_ids` and `attention_mask`, returns an output with `last_hidden_state`"""


@final
@dataclass(frozen=True)
class Batch:
    """Tokenized texts of similar length."""

    positions: tuple[int, ...]
    """The positions of the texts in the original order"""
    inputs: Mapping[str, Tensor]


def batches(tokenizer: Any, texts: Sequence[str]) -> list[Batch]:
    """Tokenize texts, and batch them sorted by length, so that there is little padding."""
    tokens = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    groups = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    padded = [tokenizer.pad({"input_ids": [tokens[i] for i in group]}, return_tensors="pt") for group in groups]
    return [
        Batch(tuple(group), {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]})
        for group, made in zip(groups, padded, strict=True)
    ]


@torch.no_grad()
def embed(model: Model, batches: Sequence[Batch], text: str) -> Tensor:
    """Return one unit vector per text: the normalized mean of its tokens' hidden states.

    `text` is the label of the progress bar.
    """
    total = sum(len(batch.positions) for batch in batches)
    rows: dict[int, Tensor] = {}
    with counting(text, total) as advance:
        for batch in batches:
            hidden = model(**batch.inputs).last_hidden_state
            mask = batch.inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows |= dict(zip(batch.positions, normalize(mean, dim=-1), strict=True))
            advance(len(batch.positions))
    return torch.stack([rows[position] for position in range(total)])


@final
@dataclass(frozen=True, eq=False)
class Search:
    """The similarity of every query (row) to every candidate (column); candidate i is the answer to query i."""

    scores: Tensor

    @property
    def ranks(self) -> Tensor:
        """The rank of each query's answer among all candidates; 1 is the best."""
        return (self.scores > self.scores.diag().unsqueeze(1)).sum(1) + 1

    def top(self, query: int, count: int) -> list[int]:
        """Return the `count` best candidates for a query."""
        found: list[int] = self.scores[query].topk(count).indices.tolist()
        return found

    def rank(self, query: int, candidate: int) -> int:
        """Return the rank of one candidate for one query; 1 is the best."""
        row = self.scores[query]
        return int((row > row[candidate]).sum()) + 1

    def figures(self) -> dict[str, float]:
        """Return recall at 1 and at 10, and the mean reciprocal rank."""
        ranks = self.ranks.double()
        return {
            "recall_at_1": float((ranks <= 1).double().mean()),
            "recall_at_10": float((ranks <= 10).double().mean()),
            "mrr": float((1 / ranks).mean()),
        }


def run_search(vectors: Tensor) -> Search:
    """Search with the vectors of all queries, followed by those of all candidates."""
    queries, candidates = vectors.chunk(2)
    return Search(queries @ candidates.t())


def pick_queries(before: Search, after: Search) -> list[int]:
    """Return the queries to show: the two whose answers gained most in reciprocal rank, and the one that lost most."""
    change = 1 / after.ranks.double() - 1 / before.ranks.double()
    order = change.argsort(stable=True).tolist()
    return [order[-1], order[-2], order[0]]
