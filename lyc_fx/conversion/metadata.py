"""Updating the metadata of a converted file that describes its network."""

from collections.abc import Mapping, Sequence

from lyc_fx.algorithms.locon import LoCon
from lyc_fx.conversion.gather import ConvertedAdapter
from lyc_fx.naming import Target

_MODULE, _DIM, _ALPHA, _ARGS = (f"ss_network_{each}" for each in ("module", "dim", "alpha", "args"))


def update_metadata(given: Mapping[str, str], made: Sequence[ConvertedAdapter], target: Target) -> dict[str, str]:
    """Return the metadata with kohya's entries about the network updated to the converted adapters.

    Entries that the file did not have are not added; for other targets than kohya and LyCORIS, module and arguments are
    removed. Ranks and alphas that differ between modules are given as `Dynamic`, as kohya's tools do.
    """
    found = dict(given)
    named = target in (Target.kohya, Target.lycoris)
    if _MODULE in found and named:
        found[_MODULE] = "networks.lora" if target is Target.kohya and all(map(_plain, made)) else "lycoris.kohya"
    elif not named:
        found.pop(_MODULE, None)
        found.pop(_ARGS, None)
    if any({"low rank", "svd"} & set(each.how) for each in made):
        for key, values in ((_DIM, {e.adapter.rank for e in made}), (_ALPHA, {e.adapter.alpha for e in made})):
            if key in found:
                found[key] = f"{values.pop():g}" if len(values) == 1 and None not in values else "Dynamic"
        found.pop(_ARGS, None)
    return found


def _plain(each: ConvertedAdapter) -> bool:
    """Return whether kohya's networks.lora supports such an adapter."""
    return isinstance(each.adapter, LoCon) and set(each.adapter.factors()) == {"up", "down"} and each.leaf == "weight"
