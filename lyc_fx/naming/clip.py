"""CLIP text encoders: the names of OpenCLIP (in SD 2, SDXL and SD3 checkpoints), and those of transformers.

transformers 5 has dropped the prefix `text_model.` of the modules of a `CLIPTextModel`; adapters still have it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

from lyc_fx.naming.piece import Pieces, Shapes, whole
from lyc_fx.naming.scheme import Dialect, Scheme, rule

_LAYER, _BLOCK = "text_model.encoder.layers.{}", "transformer.resblocks.{}"
_OPEN_CLIP = Scheme(
    (
        rule(f"{_BLOCK}.attn.in_proj", *(f"{_LAYER}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))),
        rule(f"{_BLOCK}.attn.out_proj", f"{_LAYER}.self_attn.out_proj"),
        rule(f"{_BLOCK}.mlp.c_fc", f"{_LAYER}.mlp.fc1"),
        rule(f"{_BLOCK}.mlp.c_proj", f"{_LAYER}.mlp.fc2"),
        rule(f"{_BLOCK}.ln_1", f"{_LAYER}.layer_norm1"),
        rule(f"{_BLOCK}.ln_2", f"{_LAYER}.layer_norm2"),
        rule("ln_final", "text_model.final_layer_norm"),
        rule("token_embedding", "text_model.embeddings.token_embedding"),
    ),
    marks=((f"{_BLOCK}.mlp.c_fc",), (f"{_LAYER}.self_attn.q_proj",)),
)
_PREFIX, _MARK = "text_model.", ".self_attn.q_proj.weight"
_POSITIONS = "positional_embedding", "text_model.embeddings.position_embedding.weight"
"""The position embedding: OpenCLIP's bare parameter, and the weight of transformers' module"""


@final
@dataclass(frozen=True)
class Clip:
    """The naming scheme of CLIP text encoders."""

    kind: str = "text_encoder"

    def aliases(self, shapes: Shapes) -> Iterator[tuple[Dialect, str, Pieces]]:
        """Yield further names of parameters, as `Scheme.aliases`."""
        bare = [name for name in shapes if name.startswith("encoder.layers.") and name.endswith(_MARK)]
        dropped = bool(bare) and "final_layer_norm.weight" in shapes
        prefixed = {f"{_PREFIX}{name}" if dropped else name: name for name in shapes}
        yield from _positions(prefixed)
        for dialect, name, pieces in _OPEN_CLIP.aliases({name: shapes[own] for name, own in prefixed.items()}):
            yield dialect, name, tuple(replace(piece, parameter=prefixed[piece.parameter]) for piece in pieces)
        for name, own in prefixed.items():
            if dropped:
                yield Dialect.diffusers, name, whole(own)
            elif name.startswith(_PREFIX):
                yield Dialect.spelling, name.removeprefix(_PREFIX), whole(own)


def _positions(own: Mapping[str, str]) -> Iterator[tuple[Dialect, str, Pieces]]:
    original, diffusers = _POSITIONS
    layers = {False: "transformer.resblocks.", True: f"{_PREFIX}encoder.layers."}
    for known, other, dialect in ((original, diffusers, Dialect.diffusers), (diffusers, original, Dialect.original)):
        if known in own and any(name.startswith(layers[known == diffusers]) for name in own):
            yield dialect, other, whole(own[known])
