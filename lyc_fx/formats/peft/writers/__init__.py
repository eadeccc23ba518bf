"""How each of PEFT's methods is written, one per file."""

from lyc_fx.formats.peft.writers.ia3 import Ia3Writer
from lyc_fx.formats.peft.writers.loha import LohaWriter
from lyc_fx.formats.peft.writers.lokr import LokrWriter
from lyc_fx.formats.peft.writers.lora import LoraWriter
from lyc_fx.formats.peft.writers.module import Writer
from lyc_fx.formats.peft.writers.rotations import BoftWriter, HraWriter, OftWriter
from lyc_fx.formats.peft.writers.vera import VeraWriter

__all__ = ["WRITERS"]

WRITERS: tuple[Writer, ...] = (
    LoraWriter(),
    LohaWriter(),
    LokrWriter(),
    Ia3Writer(),
    OftWriter(),
    BoftWriter(),
    HraWriter(),
    VeraWriter(),
)
