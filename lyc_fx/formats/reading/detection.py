"""Which of two layouts a module's factors have: LyCORIS's own ("torch"), or the kernel-first one of `formats.nhwc`.

The factors of one module meet in their rank, so that their shapes alone tell the layout wherever only one of the
two lets them meet. What cannot be told:

- LoCon and LoHa of two dimensions: where out = in (· kernel), at any rank;
- LoCon of a convolution: where out = rank = 1 at a kernel of 1;
- a Tucker core: of LoHa where rank = in = each size of the kernel, of LoKr where rank = k;
- LoKr without a core, and every other algorithm: they lie alike in both, and nothing depends on it.
"""

from collections.abc import Mapping

from torch import Tensor

Group = Mapping[str, Tensor]

_CHAINS = (
    ("lora_up.weight", "lora_mid.weight", "lora_down.weight"),
    ("hada_w1_a", "hada_t1", "hada_w1_b"),
    ("hada_w2_a", "hada_t2", "hada_w2_b"),
    ("lokr_w2_a", "lokr_t2", "lokr_w2_b"),
)
"""The factor of the output side, the Tucker core, and the factor of the input side"""


def consistent(group: Group) -> bool:
    """Whether the factors meet in their ranks as LyCORIS lays them out; True where a factor has no partner."""
    return all(_meet(group, *chain) for chain in _CHAINS)


def decided(fits: Mapping[str, tuple[bool, bool]]) -> set[str]:
    """The modules that are laid out kernel first, from where each one's factors meet: (in "torch", in "nhwc").

    A module whose factors meet in one layout only has that one. Where they meet in both, the module follows the
    others, if those are all kernel first, and has LyCORIS's layout otherwise.
    """
    sure = {module for module, fit in fits.items() if fit == (False, True)}
    follows = sure and (True, False) not in fits.values()
    return sure | {module for module, fit in fits.items() if follows and fit == (True, True)}


def _meet(group: Group, left_name: str, core_name: str, right_name: str) -> bool:
    left, core, right = (group.get(name) for name in (left_name, core_name, right_name))
    if left is None or right is None or min(t.dim() for t in (left, core, right) if t is not None) < 2:
        return True
    if core is None:
        return left_name.startswith("lokr") or (left.shape[1] == right.shape[0] and _flat(left))
    rank = left.shape[1 if left_name.startswith("lora") else 0]  # LoHa and LoKr turn this factor beside a core
    return (rank, right.shape[0]) == tuple(core.shape[:2]) and _flat(left) and _flat(right)


def _flat(factor: Tensor) -> bool:
    """Whether a factor has no kernel of its own."""
    return all(size == 1 for size in factor.shape[2:])
