"""Draw small plots as SVG, without a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean

__all__ = ["lines_svg"]

_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 220, 60, 30
_STYLE = (
    "svg{font:13px sans-serif;background:Canvas;color:CanvasText}text{fill:currentColor}"
    ".axis{stroke:currentColor;opacity:.4}.line{fill:none;stroke:#0072b2;stroke-width:2}.dot{fill:#d55e00}"
)


def lines_svg(curves: Mapping[str, Sequence[tuple[float, float]]], below: str) -> str:
    """Draw a panel for each curve: a dot a value, and a line through the means at each place.

    Args:
        curves: places and values, by their name; places stand side by side in their order.
        below: what the places are.
    """
    panels = "".join(_panel(name, points, below, i * _WIDTH) for i, (name, points) in enumerate(curves.items()))
    width, height = _WIDTH * len(curves), _HEIGHT + 2 * _TOP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(", ".join(curves))}"><style>{_STYLE}</style>{panels}</svg>\n'
    )


def _panel(name: str, points: Sequence[tuple[float, float]], below: str, left: int) -> str:
    places = sorted({place for place, _ in points})
    values = [value for _, value in points]
    least, most = min(values), max(values)
    room = (most - least) or 1.0

    def at(place: float, value: float) -> tuple[float, float]:
        step = (_WIDTH - _LEFT - 30) / max(len(places) - 1, 1)
        return left + _LEFT + places.index(place) * step, _TOP + (most - value) / room * (_HEIGHT - _TOP)

    line = " ".join("{:.1f},{:.1f}".format(*at(x, mean(v for p, v in points if p == x))) for x in places)
    dots = "".join('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(*at(*each)) for each in points)
    marks = "".join(_text(at(x, least)[0], _HEIGHT + 20, f"{x:g}") for x in places)
    marks += "".join(_text(left + _LEFT - 30, at(places[0], value)[1] + 4, f"{value:.3f}") for value in {least, most})
    title = _text(left + _WIDTH / 2, 16, name) + _text(left + _WIDTH / 2, _HEIGHT + 45, below)
    axis = f'<path class="axis" d="M{left + _LEFT - 5} {_TOP}V{_HEIGHT + 3}H{left + _WIDTH - 20}"/>'
    return f'{title}{axis}<polyline class="line" points="{line}"/>{dots}{marks}'


def _text(x: float, y: float, told: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(told)}</text>'
