"""Stable Diffusion's UNet: the original names (LDM, SGM), and those of diffusers.

kohya's SDXL adapters use the original names: `lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q`. With L
resnets in each down block, input block `1 + b·(L+1) + r` is down block b, resnet r, and output block `b·(L+1) + r` is
up block b, resnet r (an up block has L+1 of them).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self, final

from lyc_fx.naming.piece import Pieces, Shapes, whole
from lyc_fx.naming.scheme import Dialect

_STEM = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_RESNET_BACK = {original: ours for ours, original in _RESNET.items()}
_STEM_BACK = {original: ours for ours, original in _STEM.items()}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d{1,3})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,3})(?:\.(.*))?")
_ORIGINAL = re.compile(r"(input|output)_blocks\.(\d{1,3})\.(\d{1,3})\.(.*)")
_MIDDLE_BACK = re.compile(r"(middle_block\.\d)\.(.*)")
_MIDDLE = re.compile(r"(mid_block\.(?:resnets|attentions)\.\d+)\.(.*)")


@final
@dataclass(frozen=True)
class UNet:
    """The naming scheme of UNets, for models with either kind of names."""

    kind: str = "unet"

    def aliases(self, shapes: Shapes) -> Iterator[tuple[Dialect, str, Pieces]]:
        """Yield further names of parameters, as `Scheme.aliases`."""
        for dialect, names in ((Dialect.original, LdmNames.of(shapes)), (Dialect.diffusers, BlockNames.of(shapes))):
            for parameter in shapes if names is not None else ():
                module, _, leaf = parameter.rpartition(".")
                other = names.path(module)  # type: ignore[union-attr]
                if other is not None:
                    yield dialect, f"{other}.{leaf}", whole(parameter)


@final
@dataclass(frozen=True)
class LdmNames:
    """The original names for a diffusers UNet, whose layout follows from its parameter names."""

    layers: int
    """L, the number of resnets in each down block"""
    with_attention: frozenset[int]
    """The up blocks with attention: their upsampler is third in the output block, not second"""

    @classmethod
    def of(cls, parameters: Iterable[str]) -> Self | None:
        """Make this for a model with these parameters; None if they are not those of a diffusers UNet."""
        found = [match for name in parameters if (match := _BLOCK.match(name))]
        resnets = {int(m[4]) for m in found if (m[1], m[2], m[3]) == ("down", "0", "resnets")}
        if not resnets or not any(m[1] == "up" for m in found):
            return None
        attended = frozenset(int(m[2]) for m in found if (m[1], m[3]) == ("up", "attentions"))
        return cls(max(resnets) + 1, attended)

    def path(self, module: str) -> str | None:
        """Rename a module: `down_blocks.1.attentions.0.proj_in` → `input_blocks.4.1.proj_in`; None if that fails."""
        if module in _STEM:
            return _STEM[module]
        if middle := _MIDDLE.fullmatch(module):
            inner = _RESNET.get(middle[2], middle[2]) if "resnets" in middle[1] else middle[2]
            return f"{_STEM[middle[1]]}.{inner}" if middle[1] in _STEM else None
        block = _BLOCK.fullmatch(module)
        return None if block is None or block[5] is None else self._in_block(block)

    def _in_block(self, block: re.Match[str]) -> str | None:
        side, number, kind, index, inner = block[1], int(block[2]), block[3], int(block[4]), block[5]
        width = self.layers + 1
        first = 1 + number * width if side == "down" else number * width
        name = f"{'input' if side == 'down' else 'output'}_blocks"
        if kind == "resnets":
            return f"{name}.{first + index}.0.{_RESNET.get(inner, inner)}"
        if kind == "attentions":
            return f"{name}.{first + index}.1.{inner}"
        if kind == "downsamplers":
            return f"{name}.{first + self.layers}.0.op" if inner == "conv" else None
        return f"{name}.{first + self.layers}.{2 if number in self.with_attention else 1}.{inner}"


@final
@dataclass(frozen=True)
class BlockNames:
    """diffusers' names for an original UNet: the inverse of `LdmNames`."""

    layers: int
    """L, the number of resnets in each down block"""

    @classmethod
    def of(cls, parameters: Iterable[str]) -> Self | None:
        """Make this for a model with these parameters; None if they are not those of an original UNet."""
        found = [match for name in parameters if (match := _ORIGINAL.match(name))]
        inputs = {int(m[2]) for m in found if m[1] == "input"}
        if not inputs or not any(m[1] == "output" for m in found):
            return None
        down = [int(m[2]) for m in found if m[1] == "input" and m[4].startswith("op.")]
        return cls(min(down) - 1 if down else max(inputs))

    def path(self, module: str) -> str | None:
        """Rename a module: `input_blocks.4.1.proj_in` → `down_blocks.1.attentions.0.proj_in`; None if that fails."""
        if module in _STEM_BACK:
            return _STEM_BACK[module]
        if middle := _MIDDLE_BACK.fullmatch(module):
            owner = _STEM_BACK.get(middle[1])
            inner = _RESNET_BACK.get(middle[2], middle[2]) if owner and "resnets" in owner else middle[2]
            return None if owner is None else f"{owner}.{inner}"
        block = _ORIGINAL.fullmatch(module)
        return None if block is None else self._in_block(block)

    def _in_block(self, match: re.Match[str]) -> str:
        position, slot, inner = int(match[2]) - (match[1] == "input"), int(match[3]), match[4]
        number, layer = divmod(position, self.layers + 1)
        block = f"{'down' if match[1] == 'input' else 'up'}_blocks.{number}"
        if inner == "op":
            return f"{block}.downsamplers.0.conv"
        if slot == 0:
            return f"{block}.resnets.{layer}.{_RESNET_BACK.get(inner, inner)}"
        if inner == "conv":
            return f"{block}.upsamplers.0.conv"
        return f"{block}.attentions.{layer}.{inner}"
