"""`TargetNames`: the names that a file of some convention uses for the rows of a model's parameters."""

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import final

from lyc_fx.naming.components import Role, component_of, readings_of
from lyc_fx.naming.names import Name, Names, flatten, module_form
from lyc_fx.naming.piece import Piece, Pieces, Rows, Shapes
from lyc_fx.naming.scheme import Dialect


class Target(Enum):
    """The naming conventions that can be written."""

    lycoris = "lycoris"
    """`lycoris_` and the model's own names, flattened"""
    kohya = "kohya"
    """`lora_unet_`, `lora_te1_` … and sd-scripts' names for the architecture, flattened"""
    peft = "peft"
    """The model's own names"""
    diffusers = "diffusers"
    """`unet.`, `transformer.`, `text_encoder.` … and diffusers' names"""
    comfyui = "comfyui"
    """`diffusion_model.` and the original names; text encoders as in kohya"""
    nhwc = "nhwc"
    """As in lycoris"""


_TEXT: dict[Role, tuple[str, str]] = {
    "te1": ("lora_te1", "text_encoder"),
    "te2": ("lora_te2", "text_encoder_2"),
    "te3": ("lora_te3", "text_encoder_3"),
}
"""kohya's and diffusers' prefixes for the text encoders"""


@final
@dataclass(frozen=True)
class Place:
    """Rows of the weight that a name of the target convention means."""

    name: Name
    rows: Rows
    total: int
    """The number of all its rows"""


@final
@dataclass(frozen=True)
class TargetNames:
    """The names of one model in one convention."""

    names: Names
    shapes: Shapes
    target: Target

    @cached_property
    def dialect(self) -> Dialect:
        """The dialect that the convention uses for denoisers. kohya: diffusers for SD 1 and 2, else original."""
        match self.target:
            case Target.diffusers:
                return Dialect.diffusers
            case Target.comfyui:
                return Dialect.original
            case Target.kohya:
                small = "unet" in self._kinds.values() and not self._sdxl
                return Dialect.diffusers if small else Dialect.original
        return Dialect.own

    @cached_property
    def _sdxl(self) -> bool:
        """Whether the model is SDXL, which has a size embedding, and attention blocks of several layers."""
        marks = ("add_embedding.", "label_emb.", ".transformer_blocks.1.")
        return any(mark in f".{name}" for name in self.shapes for mark in marks)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """diffusers' name for each component, by its prefix in the model."""
        known = (name for name in self.names.all if name.kind)
        return {component_of(name.pieces[0].parameter)[0]: name.kind for name in known}

    @cached_property
    def _spoken(self) -> dict[tuple[str, str], list[Name]]:
        """The names that the convention may use for each parameter and leaf, best first."""
        by: dict[tuple[str, str], dict[Dialect, list[Name]]] = defaultdict(lambda: defaultdict(list))
        for name in self.names.all:
            for piece in name.pieces:
                by[piece.parameter, name.leaf][name.dialect].append(name)
        found = {}
        for (parameter, leaf), dialects in by.items():
            kind = self._kinds.get(component_of(parameter)[0], "")
            wanted = Dialect.diffusers if kind == "text_encoder" and self.dialect is Dialect.original else self.dialect
            own = [n for n in dialects[Dialect.own] if module_form(parameter).endswith(f"{n.path}.{leaf}")]
            own = sorted(own or dialects[Dialect.own], key=lambda n: len(n.path))[:1]  # without a component's prefix
            found[parameter, leaf] = [*(dialects[wanted] if wanted is not Dialect.own else ()), *own]
        return found

    def shape(self, name: Name) -> tuple[int, ...]:
        """Return the shape of the weight that a name means."""
        return rows_of(name.pieces, self.shapes), *self.shapes[name.pieces[0].parameter][1:]

    def places(self, piece: Piece, leaf: str) -> list[tuple[Rows, Place]]:
        """Find the places of a piece's rows in the convention.

        Returns pairs of a range of rows, counted from the piece's first row, and its place; together they cover the
        piece.
        """
        height = self.shapes[piece.parameter][0]
        first, last = piece.rows or (0, height)
        spoken = self._spoken[piece.parameter, leaf]
        for names in (spoken[:-1], spoken[-1:]):  # the model's own name is the last resort
            parts = [(part.rows or (0, height), part, name) for name in names for part in name.pieces]
            found, reached = [], first
            for (start, stop), part, name in sorted(parts, key=lambda each: each[0]):
                if part.parameter == piece.parameter and start <= reached < min(stop, last):
                    end, total = min(stop, last), rows_of(name.pieces, self.shapes)
                    base = (part.source_rows or (0, total))[0] - start
                    found.append(((reached - first, end - first), Place(name, (base + reached, base + end), total)))
                    reached = end
            if reached == last:
                return found
        raise AssertionError(piece)

    def exact(self, pieces: Pieces, leaf: str) -> Name | None:
        """Return the convention's name that means exactly these pieces, or None."""
        options = self._spoken[pieces[0].parameter, leaf]
        return next((name for name in options[:1] if name.pieces == pieces), None)

    def module(self, name: Name, source: str) -> str:
        """Return a name with the convention's prefix. `source` is the file's name, which may show the component."""
        path = name.path
        prefix = component_of(name.pieces[0].parameter)[0]
        kind = self._kinds.get(prefix, "")
        roles = name.roles or next((roles for roles, _ in reversed(readings_of(source)) if roles), frozenset())
        text = next((_TEXT[role] for role in _TEXT if role in roles), None)
        text = text or (_TEXT["te1"] if kind == "text_encoder" else None)
        match self.target:
            case Target.peft:
                return name.pieces[0].parameter.removesuffix(f".{name.leaf}") if len(name.pieces) == 1 else path
            case Target.lycoris | Target.nhwc:
                return f"lycoris_{flatten(path)}"
            case Target.diffusers:
                return f"{text[1] if text else 'unet' if kind == 'unet' else 'transformer'}.{path}"
            case Target.comfyui if not text:
                return f"diffusion_model.{path}"
        return f"{text[0] if text else 'lora_unet'}_{flatten(path)}"


def rows_of(pieces: Pieces, shapes: Shapes) -> int:
    """Return the number of rows of all pieces together."""
    return sum(p.rows[1] - p.rows[0] if p.rows else shapes[p.parameter][0] for p in pieces)
