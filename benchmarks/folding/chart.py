"""Bars as SVG, written by hand: no plotting library is needed."""

from collections.abc import Mapping, Sequence
from html import escape

_COLORS = {"cp + fsync": "#9aa0a6", "lyc-fx": "#1a73e8", "LyCORIS": "#e8710a", "PEFT": "#9334e6"}
_LEFT, _WIDTH, _BAR, _GAP = 110, 520, 16, 14


def bars(title: str, groups: Mapping[str, Sequence[tuple[str, float | None, str]]]) -> str:
    """Horizontal bars: per group (contestant, seconds or None, text beside the bar)."""
    longest = max(value for rows in groups.values() for _, value, _ in rows if value is not None)
    parts = [_text(8, 22, title, "bold")]
    top = 40
    for group, rows in groups.items():
        parts.append(_text(8, top + _BAR, group, "bold"))
        for who, value, beside in rows:
            width = 0 if value is None else max(1.0, _WIDTH * value / longest)
            color = _COLORS.get(who, "#666")
            parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR - 2}" fill="{color}"/>')
            parts.append(_text(_LEFT + width + 6, top + _BAR - 4, f"{who}: {beside}"))
            top += _BAR
        top += _GAP
    size = f'width="{_LEFT + _WIDTH + 260}" height="{top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
