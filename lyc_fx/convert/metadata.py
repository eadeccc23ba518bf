"""What the metadata of a converted file says of its network: what is in it now, not what was before."""

from collections.abc import Mapping, Sequence

from lyc_fx.convert.gather import Made
from lyc_fx.families.locon import LoCon
from lyc_fx.naming import Target

_MODULE, _DIM, _ALPHA, _ARGS = (f"ss_network_{each}" for each in ("module", "dim", "alpha", "args"))


def metadata_of(given: Mapping[str, str], made: Sequence[Made], target: Target) -> dict[str, str]:
    """The metadata with kohya's and LyCORIS's own words for the converted adapters; the other targets have none.

    Only what was said before is said. Of ranks that were reduced, kohya's own tools say `Dynamic` where they differ.
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


def _plain(each: Made) -> bool:
    """Whether kohya's own networks.lora has such an adapter."""
    return isinstance(each.adapter, LoCon) and set(each.adapter.factors()) == {"up", "down"} and each.leaf == "weight"
