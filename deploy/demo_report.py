"""The demo's table, on the terminal and as a page without a network."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Row:
    name: str
    what: str
    ttft_s: float
    cached_tokens: int
    loaded_bytes: int
    identical: bool | None  # None: nothing to compare with
    load_s: float  # of ttft_s, in Cairn's one call
    runs: int  # the times are their median

    def json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["what"]
        return row


@dataclass
class Check:
    name: str
    over_s: float  # above the engine's own prefix hit
    limit_s: float
    rate: float  # bytes a second of the machine's own copy or read
    slack_s: float

    @property
    def met(self) -> bool:
        return self.over_s <= self.limit_s

    def text(self) -> str:
        what = "copy" if self.name == "ram" else "disk read"
        return (f"{self.name} - prefix = {self.over_s * 1000:.1f} ms, "
                f"allowed {self.limit_s * 1000:.1f} ms (1.5 x bytes / {what} of "
                f"{self.rate / 1e9:.2f} GB/s, measured here, + {self.slack_s * 1000:.0f} ms): "
                f"{'met' if self.met else 'NOT met'}")

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def _identical(row: Row) -> str:
    if row.identical is None:
        return "-"
    return "yes" if row.identical else "NO"


def _loading(row: Row) -> str:
    return f"{row.load_s * 1000:.1f} ms" if row.loaded_bytes else "-"


def table(rows: list[Row], checks: list[Check]) -> str:
    lines = [f"{'':9} {'first token':>12} {'tokens found':>13} {'from Cairn':>11} "
             f"{'loading':>10} {'identical':>10}"]
    for r in rows:
        loaded = f"{r.loaded_bytes / 1e6:.1f} MB" if r.loaded_bytes else "-"
        lines.append(f"{r.name:9} {r.ttft_s * 1000:9.1f} ms {r.cached_tokens:13,} {loaded:>11} "
                     f"{_loading(r):>10} {_identical(r):>10}   {r.what}")
    return "\n".join([*lines, "", *(c.text() for c in checks)])


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #1c2733; background: #fff }
h1 { font-size: 1.5em; margin-bottom: .2em }
table { border-collapse: collapse; width: 100%; margin: 1.5em 0 }
th, td { text-align: right; padding: .35em .6em; border-bottom: 1px solid #dde3e9 }
th:first-child, td:first-child, td.what, th.what { text-align: left }
td.what { color: #5a6875 }
.no { color: #b00020; font-weight: bold }
svg text { font: 13px system-ui, sans-serif; fill: #1c2733 }
@media (prefers-color-scheme: dark) {
  body { color: #dfe6ee; background: #14191f } td.what { color: #93a1af }
  th, td { border-color: #2c3640 } svg text { fill: #dfe6ee } }
"""
COLORS = {"cold": "#9aa5b1", "prefix": "#6b7a8a", "ram": "#2a7de1", "disk": "#7a4fd0",
          "question": "#2a7de1", "second": "#7a4fd0"}


def _bars(rows: list[Row], longest: float, title: str) -> str:
    """Bars to one scale: without the cold row the others can be told apart."""
    left, width, step = 80, 620, 30
    parts = [f'<svg viewBox="0 0 900 {step * len(rows) + 30}" role="img" '
             f'aria-label="{html.escape(title)}">',
             f'<text x="0" y="14">{html.escape(title)}</text>']
    for i, r in enumerate(rows):
        top = 26 + step * i
        long = max(1.0, width * r.ttft_s / longest)
        parts.append(f'<text x="0" y="{top + 15}">{r.name}</text>'
                     f'<rect x="{left}" y="{top}" width="{long:.1f}" height="20" rx="3" '
                     f'fill="{COLORS[r.name]}"/>'
                     f'<text x="{left + long + 8:.1f}" y="{top + 15}">{r.ttft_s * 1000:.1f} ms'
                     "</text>")
    return "".join(parts) + "</svg>"


def report(rows: list[Row], checks: list[Check], prompt_tokens: int) -> str:
    cold = next(r for r in rows if r.name == "cold")
    warm = [r for r in rows if r is not cold]
    cells = "".join(
        f"<tr><td>{r.name}</td><td>{r.ttft_s * 1000:.1f} ms</td><td>{cold.ttft_s / r.ttft_s:.0f}x"
        f"</td><td>{r.cached_tokens:,}</td><td>{r.loaded_bytes / 1e6:.1f} MB</td>"
        f"<td>{_loading(r)}</td>"
        f'<td{" class=no" if r.identical is False else ""}>{_identical(r)}</td><td>{r.runs}</td>'
        f'<td class="what">{html.escape(r.what)}</td></tr>' for r in rows)
    told = "".join(f"<li{'' if c.met else ' class=no'}>{html.escape(c.text())}</li>"
                   for c in checks)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Cairn: the demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><h1>Time to the first token of a prompt of {prompt_tokens:,} tokens</h1>
<p>A real vLLM on the CPU, a real model (SmolLM2-135M-Instruct) and a real document (the GNU GPL,
version 3). The log probabilities of every row loaded from Cairn are compared bit for bit with the
engine's own prefix hit of the same prompt and length.</p>
{_bars(rows, cold.ttft_s, "all rows")}
{_bars(warm, max(r.ttft_s for r in warm), "without the cold row")}
<table><tr><th></th><th>first token</th><th>faster</th><th>tokens found</th><th>from Cairn</th>
<th>loading</th><th>identical</th><th>runs</th><th class="what"></th></tr>{cells}</table>
<ul>{told}</ul></body></html>
"""
