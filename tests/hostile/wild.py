"""Values that a parser does not expect."""

import random
import string
from typing import Any

from hostile.draft import Raw

HUGE = (2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**30)
NAMES = (
    "", ".", "..", "/", "../../etc/passwd", "a\nb", "a\0b", "\x1b[31mred", "é", "日本.weight", "\u202eabc", "a b",
    "__metadata__", "lora_unet_", "lycoris_", "base_model.model.", "unet.", ".lora_A.weight", "alpha", ".alpha",
    "weight", "base_model.model..lora_A.weight", "down_blocks.0.resnets.0.conv1", "{0}", "%s", "[a-z]*", "\ud800",
    "down_blocks.99999999999999999999.attentions.0.x.weight", "\uffff", "\U0001f600", "down_blocks.²٣.resnets.0.x",
)  # fmt: skip
PATTERNS = (
    "(a+)+$", "(a|a)*b", "(.*)*x", "(", ")", "[", "*", "a{99999999999}", "((a{999}){999}){999}", "(?=a)", "(?i)fc",
    r"(a)\1", "(?P<x>a", "\\", "a**", r"\d" * 900, "(" * 300 + ")" * 300, ".*" * 300, "(a?){40}a{40}", "", "\ud800",
    "fc", r".*\.conv", "^fc$", "(fc|conv)", "[^x]+", "(?:f|c)+.?", "a)(b", "x" * 5000,
)  # fmt: skip


def text(rng: random.Random) -> str:
    """A name: odd, long, or any letters."""
    match rng.randrange(8):
        case 0:
            return rng.choice("ab.é_/") * rng.choice([100, 5000, 100_000])
        case 1:
            return "a." * rng.choice([1000, 20_000])
        case 2:
            return "".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(20)))
        case 3:
            return "".join(rng.choice(string.printable) for _ in range(rng.randrange(40)))
    return rng.choice(NAMES)


def number(rng: random.Random) -> Any:
    """A number as JSON may hold it."""
    return rng.choice([
        0, 1, -1, 3, 0.5, -0.0, 1e-320, 1e300, 10**400, -(2**63), rng.choice(HUGE), -rng.choice(HUGE), Raw("NaN"),
        Raw("Infinity"), Raw("-Infinity"), Raw("1e400"), Raw("-1e9999"), Raw(f"1{'0' * rng.choice([400, 4000, 5000])}"),
    ])  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and some that it cannot."""
    match rng.randrange(11 if depth < 3 else 8):
        case 0 | 1 | 2:
            return number(rng)
        case 3:
            return text(rng)
        case 4:
            return rng.choice([None, True, False])
        case 5:
            return rng.choice(PATTERNS)
        case 6:
            return rng.choice(["16", "nan", "1e400", "None", "", "٣"])
        case 7:
            return rng.choice(
                [Raw(""), Raw("nul"), Raw("'a'"), Raw("[1,]"), Raw('"\\ud800"'), Raw('"\\x"'), Raw("{}{}")]
            )
        case 8:
            return Raw(deep(rng))
        case 9:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def deep(rng: random.Random) -> str:
    """JSON that is nested deeper than a stack."""
    levels = rng.choice([50, 900, 1100, 20_000, 200_000])
    start, end = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    return start * levels + rng.choice(["1", "", "{}"]) + end * (levels if rng.random() < 0.8 else 0)
