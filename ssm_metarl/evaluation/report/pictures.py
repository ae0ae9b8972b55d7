"""A small kit for SVG pictures that live in a page: round ticks, lines, bands, whiskers, and labels that keep clear.

Colours are CSS classes (``pictures.css``), so that a picture follows the reader's light or dark mode, and text is text:
it can be read aloud, searched and copied. Everything that is not a number is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from ssm_metarl.evaluation.report.wording import number

WIDTH = 460
_LETTER, _BOLD_LETTER, _LINE = 7.4, 8.6, 17.0
_HINTED = '<g class="hinted"><title>{}</title>{}</g>'


@dataclass(frozen=True)
class Scale:
    """Maps numbers from ``low`` to ``high`` to user units from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def around(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all finite values with some room, and is never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` round numbers between the two, at steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A tick's label: ``0.2``, ``−40``, ``1.5 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size and step >= size / 100:
            return number(value / size, 10 * step / size) + unit
    return number(value, 10 * step)


class Picture:
    """One picture with axes. User units are pixels of a picture that is 460 wide; y runs downwards.

    Args:
        name: its identity on the page and, as a file, its name. title, description: what it shows, read aloud.
        x, y: the ranges of the axes. height: of the whole picture.
        right: the labels to come at the right: they decide how much room the plot leaves them.
        left: where the plot begins if it has no y axis; None: after the labels of its ticks.
    """

    def __init__(
        self,
        name: str,
        title: str,
        description: str,
        x: tuple[float, float],
        y: tuple[float, float],
        height: float = 290,
        right: Sequence[str] = (),
        left: float | None = None,
    ) -> None:
        self.name, self.title, self._description, self._height = name, title, description, height
        self._y_ticks = ticks(*y) if left is None else []
        if left is None:
            left = 12 + _LETTER * max(len(text) for text in _texts(self._y_ticks))
        room = 14 + _BOLD_LETTER * max((len(text) for text in right), default=0)
        self.x = Scale(*x, left, WIDTH - room)
        self.y = Scale(*y, height - 46, 30)
        self._parts: list[str] = []

    def y_axis(self, label: str) -> None:
        """Round ticks with faint lines across the plot; what is measured stands above them."""
        for value, text in zip(self._y_ticks, _texts(self._y_ticks), strict=True):
            y = self.y(value)
            self._add(f'<path class="grid" d="M{self.x.start:.1f} {y:.1f}H{self.x.end:.1f}"/>')
            self.text(self.x.start - 7, y + 4.5, text, anchor="end")
        self.text(1, 15, label)

    def x_axis(self, label: str, values: Sequence[float] | None = None, texts: Sequence[str] | None = None) -> None:
        """Ticks at ``values`` (None: at round numbers) with ``texts`` (None: the numbers), and what they count."""
        values = ticks(self.x.low, self.x.high) if values is None else values
        self._add(f'<path class="axis" d="M{self.x.start:.1f} {self.y.start:.1f}H{self.x.end:.1f}"/>')
        for value, text in zip(values, _texts(values) if texts is None else texts, strict=True):
            self.text(self.x(value), self.y.start + 19, text, anchor="middle")
        self.text((self.x.start + self.x.end) / 2, self._height - 6, label, anchor="middle")

    def line(self, xs: Sequence[float], ys: Sequence[float], css: str, shift: float = 0.0, hint: str = "") -> None:
        """A line through the points, moved and hinted like a dot; interrupted where a number is not finite."""
        path, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                path.append(f"{pen}{self.x(x) + shift:.1f} {self.y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        self.hinted(f'<path class="line {css}" d="{"".join(path)}"/>', hint)

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], css: str) -> None:
        """The area between two lines; points that are not finite are left out."""
        points = [point for point in zip(xs, lows, highs, strict=True) if all(map(math.isfinite, point))]
        there = [f"{self.x(x):.1f} {self.y(high):.1f}" for x, _, high in points]
        back = [f"{self.x(x):.1f} {self.y(low):.1f}" for x, low, _ in reversed(points)]
        if points:
            self._add(f'<path class="band {css}" d="M{"L".join(there + back)}Z"/>')

    def dot(self, x: float, y: float, css: str, hint: str = "", radius: float = 4.0, shift: float = 0.0) -> None:
        """A dot, moved by ``shift`` user units to the right; ``hint`` shows when a pointer rests on it."""
        if math.isfinite(x) and math.isfinite(y):
            at, height = self.x(x) + shift, self.y(y)
            self.hinted(f'<circle class="dot {css}" cx="{at:.1f}" cy="{height:.1f}" r="{radius:g}"/>', hint)

    def whisker(self, x: float, low: float, high: float, css: str, shift: float = 0.0) -> None:
        """A vertical interval at ``x``, moved like a dot, so that neighbours do not cover each other."""
        at = self.x(x) + shift
        self._add(f'<path class="whisker {css}" d="M{at:.1f} {self.y(low):.1f}V{self.y(high):.1f}"/>')

    def segment(self, start: tuple[float, float], end: tuple[float, float], css: str) -> None:
        """A straight line between two points of the plot."""
        (x1, y1), (x2, y2) = start, end
        path = f"M{self.x(x1):.1f} {self.y(y1):.1f}L{self.x(x2):.1f} {self.y(y2):.1f}"
        self._add(f'<path class="whisker {css}" d="{path}"/>')

    def box(self, x: tuple[float, float], y: tuple[float, float], css: str, hint: str = "") -> None:
        """A filled rectangle between two x and two y of the plot, the lower one first."""
        left, top = self.x(x[0]), self.y(y[1])
        width, height = self.x(x[1]) - left, self.y(y[0]) - top
        shape = f'<rect class="box {css}" x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
        self.hinted(shape, hint)

    def text(self, x: float, y: float, text: str, css: str = "quiet", anchor: str = "start") -> None:
        """Words at a place in user units."""
        self._add(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def end_labels(self, labels: Sequence[tuple[float, str, str]]) -> None:
        """(y of the plot, text, class) each, at the right of the plot: near their y, and clear of each other."""
        finite = sorted((self.y(y), text, css) for y, text, css in labels if math.isfinite(y))
        places = keep_apart([place for place, _, _ in finite], _LINE, self.y.end + 6, self.y.start)
        for place, (_, text, css) in zip(places, finite, strict=True):
            self.text(self.x.end + 9, place + 4.5, text, f"label {css}")

    def hinted(self, shape: str, hint: str) -> None:
        """A shape of this kit, with a hint if there is one."""
        self._add(_HINTED.format(escape(hint), shape) if hint else shape)

    def __html__(self) -> str:
        return self._svg("")

    def standalone(self) -> str:
        """The picture as a file of its own, light and dark."""
        style = (Path(__file__).parent / "pictures.css").read_text(encoding="utf-8")
        return self._svg(f"<style>{style}</style>")

    def _svg(self, style: str) -> Markup:
        title, description = escape(self.title), escape(self._description)
        return Markup(
            f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {WIDTH} {self._height:g}" role="img"'
            f' aria-labelledby="{self.name}-title {self.name}-desc"><title id="{self.name}-title">{title}</title>'
            f'<desc id="{self.name}-desc">{description}</desc>{style}{"".join(self._parts)}</svg>'
        )

    def _add(self, part: str) -> None:
        self._parts.append(part)


def keep_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The sorted places, moved as little as it takes to lie ``gap`` apart between ``low`` and ``high``."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _texts(values: Sequence[float]) -> list[str]:
    step = min((after - before for before, after in itertools.pairwise(values)), default=1.0)
    return [tick_text(value, step) for value in values]
