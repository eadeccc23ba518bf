"""Tied weights in a model's folder: the output head of a language model that is its embedding, stored only once.

transformers ties them if config.json has `tie_word_embeddings: true`, or if the class does so by default and the files
have no head. An adapter for one of the two changes only that one, as in PEFT's forward; if the two become different,
the head is written as a tensor of its own, and the new configuration ties nothing.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.fitting import Weight
from lyc_fx.checkpoint.base import Base, Part
from lyc_fx.errors import BadFile, Unsupported
from lyc_fx.storage.header import Layout

FLAG = "tie_word_embeddings"
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|tokens_embed|shared|embeddings)\.weight$"
)
_TEXT = ("text_config", "llm_config")
"""The keys of a multimodal model's configuration that hold that of its language model"""
_LANGUAGE_MODEL = re.compile(r"(LMHeadModel|For(CausalLM|MaskedLM|ConditionalGeneration|ImageTextToText|PreTraining))$")
_HEADS = (
    ("cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"),
)
"""The heads of BERT and RoBERTa, whose bias is tied too: a parameter that shows such a head, and the names of its
tied weight and bias"""


@final
@dataclass(frozen=True)
class Tie:
    """Weights of one model that share a stored tensor. All names have their component's prefix."""

    config: Path
    """The configuration that ties them, relative to the base"""
    aliases: Mapping[str, str]
    """From the names that are not stored to those of the stored tensors"""
    encoder: bool = False
    """Whether the model has encoder and decoder: then its code computes differently if they are tied"""

    @property
    def names(self) -> tuple[str, ...]:
        """All names: the stored ones, then the aliases."""
        return tuple(dict.fromkeys((*self.aliases.values(), *self.aliases)))

    def broken(self, binding: Binding) -> bool:
        """Return whether the adapters make the tied weights differ.

        Raises Unsupported if they do and the weights cannot be untied, as in an encoder-decoder model.
        """
        effects = [[each for each in binding.active(name)] for name in self.names if not name.endswith("bias")]
        if all(same_changes(each, effects[0]) for each in effects[1:]):
            return False
        if self.encoder:
            raise Unsupported(
                f"{', '.join(self.names)} are one tensor in this model, and its code depends on whether they are tied, "
                "so an adapter for one of them cannot be folded: merge it with PEFT, or leave it out (--exclude)"
            )
        return True

    @property
    def note(self) -> str:
        """What to tell the user when the tie is broken."""
        pairs = [f"{alias} was tied to {source}" for alias, source in self.aliases.items()]
        return f"{', '.join(pairs)}: they are now stored separately, and {FLAG} is false in {self.config}"


def find_ties(base: Base) -> list[Tie]:
    """Find the tied weights of every model of a base. For a single file, the config.json beside it is read.

    Raises BadFile for a config.json that is not valid JSON.
    """
    found = []
    for inside, config in configurations(base).items():
        owner = ".".join(inside.parent.parts)
        prefix = f"{owner}." if owner else ""
        tensors = {t.name: t.shape for part in base.parts if part.prefix == prefix for t in part.layout.tensors}
        aliases, encoder = _aliases(config, tensors)
        if aliases:
            found.append(Tie(inside, {prefix + a: prefix + s for a, s in aliases.items()}, encoder))
    return found


def configurations(base: Base) -> dict[Path, dict[str, Any]]:
    """Read every config.json of a base, by its path inside; for a single file, the one beside it.

    Raises BadFile for one that is not valid JSON.
    """
    root = base.root if base.folder else base.root.parent
    inside = [each for each in base.other_files if each.name == "config.json"] if base.folder else [Path("config.json")]
    return {each: configuration(root / each) for each in inside if (root / each).is_file()}


def with_aliases(base: Base, aliases: Mapping[str, str]) -> Base:
    """Return the base as if its tensors were also stored under these aliases, in the same files."""

    def extended(part: Part) -> Part:
        known = {t.name: t for t in part.layout.tensors}
        own = {a.removeprefix(part.prefix): s.removeprefix(part.prefix) for a, s in aliases.items()}
        more = [replace(known[s], name=a) for a, s in own.items() if s in known and a not in known]
        tensors = sorted((*part.layout.tensors, *more), key=lambda t: (t.start, t.name))
        return replace(part, layout=Layout(part.layout.header, tuple(tensors)))

    return replace(base, parts=tuple(extended(part) for part in base.parts)) if aliases else base


def with_tied_names(weights: Mapping[str, Weight], found: list[Tie]) -> dict[str, Weight]:
    """Return the weights, with an entry for each alias of a tied one."""
    more = {alias: weights[source] for tie in found for alias, source in tie.aliases.items() if source in weights}
    return {**more, **weights}


def untie_config(config: dict[str, Any]) -> dict[str, Any]:
    """Change a configuration, in place, so that it ties nothing."""
    for table in (config, *(t for t in config.values() if isinstance(t, dict) and (FLAG in t or "vocab_size" in t))):
        table[FLAG] = False
    return config


def configuration(path: Path) -> dict[str, Any]:
    """Read a `config.json`; empty if it is not a JSON object. Raises BadFile if it is not valid JSON."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadFile(f"{path}: is not valid JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _aliases(config: dict[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], bool]:
    """Return the aliases of a model's tensors, and whether it has both an encoder and a decoder."""
    text: dict[str, Any] = next((config[k] for k in _TEXT if isinstance(config.get(k), dict)), {})
    flag = config.get(FLAG, text.get(FLAG))
    architecture = str((config.get("architectures") or [""])[0])
    size = config.get("vocab_size", text.get("vocab_size"))
    embeddings = [n for n, s in tensors.items() if _EMBEDDING.search(n) and len(s) == 2 and size in (None, s[0])]
    if flag is False or len(embeddings) != 1 or not (flag or _LANGUAGE_MODEL.search(architecture)):
        return {}, False
    [source] = embeddings
    for mark, head, bias in _HEADS:
        if mark in tensors:
            return {head: source} | ({bias: mark} if bias not in tensors else {}), False
    inner = source.partition("model.embed_tokens")[0]  # before transformers 5: language_model.model.embed_tokens
    head = "language_model.lm_head.weight" if inner == "language_model." else "lm_head.weight"
    if not flag and head in tensors:
        return {}, False
    return {head: source}, bool(config.get("is_encoder_decoder"))


def same_changes(some: list[Bound], others: list[Bound]) -> bool:
    """Whether two weights have equal adapters: PEFT's `ensure_weight_tying` saves each adapter twice."""
    return len(some) == len(others) and all(
        (one.total, one.rows, one.adapter.structure()) == (other.total, other.rows, other.adapter.structure())
        and all(torch.equal(f, other.adapter.factors()[n]) for n, f in one.adapter.factors().items())
        for one, other in zip(some, others, strict=True)
    )
