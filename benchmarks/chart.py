"""One SVG of horizontal bars: medians, with a line from the least to the most.

It owns the drawing. It refuses to choose what is drawn, and to need anything but text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from measuring import Series, figure

WIDTH, LABELS, FIGURES, BAR, GAP, HEAD = 860, 300, 70, 18, 8, 46

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 15px }
.bar { fill: #8c959f }
.ours { fill: #2f6fde }
.limit { fill: none; stroke: #8c959f; stroke-dasharray: 4 3 }
.range { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .range { stroke: #e6edf3 } }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars with a title; those of ``ours`` stand out, those of ``limits`` are only outlined."""

    title: str
    bars: Mapping[str, Series]
    ours: Sequence[str] = ()
    limits: Sequence[str] = ()


def drawn(panels: Sequence[Panel]) -> str:
    """Draw ``panels`` one below the other."""
    parts: list[str] = []
    top = 0
    for panel in panels:
        parts += _panel(panel, top)
        top += HEAD + len(panel.bars) * (BAR + GAP)
    height = top + GAP
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join([svg, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _panel(panel: Panel, top: int) -> list[str]:
    longest = max(series.most for series in panel.bars.values())
    scale = (WIDTH - LABELS - FIGURES) / longest
    parts = [f'<text class="title" x="0" y="{top + 26}">{escape(panel.title)}</text>']
    for place, (name, series) in enumerate(sorted(panel.bars.items(), key=lambda bar: -bar[1].median)):
        kind = "ours" if name in panel.ours else "limit" if name in panel.limits else "bar"
        parts += _bar(name, series, kind, scale, top + HEAD - 8 + place * (BAR + GAP))
    return parts


def _bar(name: str, series: Series, kind: str, scale: float, top: int) -> list[str]:
    middle, text = top + BAR // 2, top + BAR - 5
    least, median, most = (LABELS + value * scale for value in (series.least, series.median, series.most))
    return [
        f'<text x="{LABELS - 8}" y="{text}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LABELS}" y="{top}" width="{median - LABELS:.1f}" height="{BAR}" rx="2"/>',
        f'<line class="range" x1="{least:.1f}" x2="{most:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text x="{most + 6:.1f}" y="{text}">{figure(series.median)}</text>',
    ]
