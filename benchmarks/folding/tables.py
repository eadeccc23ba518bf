"""What the figures say: the table, the verdicts, the data, the plot."""

from statistics import median
from typing import Any

from folding import adapters
from folding.chart import bars
from folding.contest import COPY, LYCORIS, OURS, Result, Results

COPIES = {"LoRA": 1.5, "LoKr": 1.5, "LoHa": 2.0, "DoRA": 2.0}
"""The most copies that a fold may take"""
FASTER, MEMORY, SHARE = 8.0, 2**30, 0.999


def rows(results: Results) -> list[dict[str, str]]:
    copy = copying(results)
    return [_row(kind, name, each, copy, who[OURS].wall) for kind, who in results.items() for name, each in who.items()]


def copying(results: Results) -> float | None:
    """The median over all copies: they do not depend on the adapter, and disks are moody."""
    walls = _copies(results)
    return median(walls) if walls else None


def copies(results: Results) -> str:
    walls = _copies(results)
    if not walls:
        return "no copy succeeded"
    return (
        f"÷ cp: by the median of all {len(walls)} copies, {median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f})"
    )


def _copies(results: Results) -> list[float]:
    return [run.wall for who in results.values() for run in who[COPY].runs if not run.error]


def _row(kind: str, who: str, result: Result, copy: float | None, ours: float | None) -> dict[str, str]:
    wall, check = result.wall, result.check
    return {
        "adapter": kind,
        "": who,
        "wall s": _number(wall, 2),
        "after imports s": _number(result.seconds, 2),
        "÷ cp": _number(_ratio(wall, copy), 2),
        "÷ lyc-fx": _number(_ratio(wall, ours), 1),
        "anon. MiB": f"{result.anonymous / 2**20:.0f}" if wall is not None and who != COPY else "–",
        "exact": f"{check.share:.3%}" if check else "–",
        "worst": f"{check.worst} ulp" if check else "–",
        "note": result.error or "; ".join({each.note for each in result.runs if each.note}),
    }


def sampled(results: Results) -> str:
    checks = [each.check for who in results.values() for each in who.values() if each.check]
    if not checks:
        return "no output was compared"
    few, many = min(check.elements for check in checks), max(check.layers for check in checks)
    return f"each output was compared in {few / 1e6:.1f} million elements, on {many} layers"


def verdicts(results: Results, *, timed: bool) -> list[dict[str, str]]:
    """What was asked, what was measured, and whether that is it; `timed`: the seconds too."""
    lines = []
    for kind, who in results.items():
        ours, check = who[OURS], who[OURS].check
        times, faster = _ratio(ours.wall, copying(results)), _ratio(who[LYCORIS].wall, ours.wall)
        if timed and kind in COPIES:
            lines.append(_verdict(kind, "wall ÷ (cp + fsync)", f"≤ {COPIES[kind]}", times, times, COPIES[kind]))
        if timed and faster is not None:
            lines.append(_verdict(kind, "faster than LyCORIS", f"≥ {FASTER:.0f} ×", faster, -faster, -FASTER))
        mebibytes = ours.anonymous / 2**20
        lines.append(_verdict(kind, "anonymous MiB", "≤ 1024", mebibytes, ours.anonymous, MEMORY))
        if check:
            percent = 100 * check.share
            lines.append(_verdict(kind, "% correctly rounded", "≥ 99.9", percent, -check.share, -SHARE))
            lines.append(_verdict(kind, "worst, ulp", "≤ 1", check.worst, check.worst, 1))
            lines.append(_verdict(kind, "other tensors changed", "0", check.touched, check.touched, 0))
    return lines


def _verdict(
    kind: str, what: str, asked: str, shown: float | None, value: float | None, limit: float
) -> dict[str, str]:
    """`value` is better the smaller it is."""
    met = "failed" if value is None else "yes" if value <= limit else "NO"
    digits = 0 if isinstance(shown, int) else 3 if "%" in what else 2
    return {"adapter": kind, "what": what, "asked": asked, "measured": _number(shown, digits), "met": met}


def plot(title: str, results: Results) -> str:
    """Wall seconds as an SVG picture."""
    groups = {}
    for kind, who in results.items():
        groups[kind] = [
            (name, each.wall, "failed or skipped" if each.wall is None else _beside(each.wall, copying(results)))
            for name, each in who.items()
        ]
    return bars(title, groups)


def data(results: Results) -> list[dict[str, Any]]:
    """Every run."""
    return [
        {
            "adapter": adapters.TITLES[kind],
            "contestant": name,
            "wall": each.wall,
            "seconds": each.seconds,
            "anonymous": each.anonymous,
            "error": each.error,
            "runs": [vars(run) for run in each.runs],
            "check": each.check and vars(each.check) | {"share": each.check.share},
        }
        for kind, who in results.items()
        for name, each in who.items()
    ]


def _beside(wall: float, copy: float | None) -> str:
    ratio = _ratio(wall, copy)
    return f"{wall:.1f} s" + (f" ({ratio:.1f} × cp)" if ratio is not None else "")


def _ratio(value: float | None, to: float | None) -> float | None:
    return None if value is None or not to else value / to


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
