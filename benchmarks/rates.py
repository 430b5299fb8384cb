"""Processor time for each delivered message against the rate, for the product and its peers, and its chart.

A saturated proxy merges what waits in its socket, so its cost at full load says little about a real day, on which
messages come one by one.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from contenders import Bench
from measure import run

TEXT = "Wildcard, 10 clients, 1 message a frame, at rising rates: processor time for each delivered message."
NOTE = """\
A contender has no figure at the rates that it does not keep up with. What costs at low rates is that each message wakes
an idle process, whose code and data the caches no longer hold. Where messages come faster than they are sent, the proxy
sends those together that wait together."""
CONTENDERS = {"proxy": "alpaca-proxy", "picows": "picows", "C frame": "C relay", "naive": "naive"}
RATES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)  # messages a second
CLIENTS = 10
KEPT = 0.97  # of the messages; a contender that delivers fewer does not keep up

Series = dict[str, dict[int, float]]  # by contender and rate, in microseconds


def measure_rates(bench: Bench, rounds: int, seconds: float) -> Series:
    """Return the medians of the rounds."""
    values: dict[str, dict[int, list[float]]] = {name: {} for name in CONTENDERS if bench.has(name)}
    behind: set[str] = set()
    for rate in RATES:
        for number in range(rounds):
            for contender in values.keys() - behind:
                figures = run(bench, contender, {"clients": CLIENTS, "batch": 1, "rate": rate}, seconds)
                print(
                    f"  {rate:,}/s round {number + 1} {contender}: {figures.cpu:,.0f} ns", file=sys.stderr, flush=True
                )
                values[contender].setdefault(rate, []).append(figures.cpu / 1000)
                if figures.delivered < KEPT * rate * CLIENTS:
                    behind.add(contender)
                    del values[contender][rate]
    return {
        contender: {rate: statistics.median(them) for rate, them in of_rate.items()}
        for contender, of_rate in values.items()
    }


def table(series: Series) -> list[list[str]]:
    """Return the titles, and a row for each rate."""
    rows = [["messages a second", *(CONTENDERS[contender] for contender in series)]]
    for rate in RATES:
        cells = [f"{them[rate]:.1f} us" if rate in them else "" for them in series.values()]
        rows.append([f"{rate:,}", *cells])
    return rows


# The chart, in SVG, in the colours of GitHub's light and dark pages

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 128, 56, 52
THEMES = {
    "light": {"text": "#1f2328", "faint": "#59636e", "grid": "#d1d9e0", "background": "#ffffff"},
    "dark": {"text": "#f0f6fc", "faint": "#9198a1", "grid": "#3d444d", "background": "#0d1117"},
}
COLOURS = {
    "light": {"proxy": "#0969da", "picows": "#bc4c00", "C frame": "#1a7f37", "naive": "#8250df"},
    "dark": {"proxy": "#4493f8", "picows": "#db6d28", "C frame": "#3fb950", "naive": "#ab7df8"},
}


def write_charts(series: Series, folder: Path) -> None:
    """Write rates-light.svg and rates-dark.svg."""
    for theme in THEMES:
        (folder / f"rates-{theme}.svg").write_text(_chart(series, theme))


def _chart(series: Series, theme: str) -> str:
    colours = THEMES[theme]
    values = [value for them in series.values() for value in them.values()]
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick <= max(values) * 2]
    ticks = [tick for tick in ticks if tick >= min(values) / 2]

    def x(rate: float) -> float:
        return LEFT + _share(rate, RATES[0], RATES[-1]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, ticks[0], ticks[-1]) * (HEIGHT - TOP - BOTTOM)

    def text(at: tuple[float, float], words: str, colour: str, anchor: str = "middle", size: int = 12) -> str:
        return (
            f'<text x="{at[0]:.0f}" y="{at[1]:.0f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">'
            f"{words}</text>"
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>Processor time for each delivered message against messages a second</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colours["background"]}"/>',
        text((LEFT, 24), "Processor time for each delivered message (µs)", colours["text"], "start", 15),
        text((LEFT, 42), "10 clients with everything, one message a frame; lower is better", colours["faint"], "start"),
    ]
    for tick in ticks:
        parts.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="{colours["grid"]}" stroke-width="1" fill="none"/>'
        )
        parts.append(text((LEFT - 8, y(tick) + 4), f"{tick:g}", colours["faint"], "end"))
    for rate in RATES:
        parts.append(text((x(rate), HEIGHT - BOTTOM + 20), f"{rate:,}", colours["faint"]))
    parts.append(text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12), "messages a second from Alpaca", colours["faint"]))
    taken: list[float] = []
    for contender, them in sorted(series.items(), key=lambda pair: list(pair[1].values())[-1:] or [0.0]):
        if not them:
            continue
        colour, width = COLOURS[theme][contender], 3 if contender == "proxy" else 2
        points = [(x(rate), y(value)) for rate, value in them.items()]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points]
        at = points[-1][1] + 4
        while any(abs(at - other) < 14 for other in taken):
            at -= 14
        taken.append(at)
        parts.append(text((points[-1][0] + 8, at), CONTENDERS[contender], colour, "start", 13))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _share(value: float, least: float, most: float) -> float:
    """Return where a value lies between two others on a logarithmic axis, from 0 to 1."""
    return math.log(value / least) / math.log(most / least)
