"""The results of the demo as one HTML page that needs nothing else.

What belongs here: HTML. The plot and the diagrams are SVG, made elsewhere, and put in as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from bridgecore.simulate.growth_report import counted, plot
from bridgecore_cli.demo.story import COLUMNS, Results, legend, rows
from bridgecore_cli.demo.timeline import Arrow, in_order, svg

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide svg { min-width: 42rem; }
.hint, .narrow { display: none; }
@media (max-width: 46em) {
  .hint, .narrow { display: block; } .broad { display: none; }
}
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; }
summary { cursor: pointer; margin: .6rem 0; }
figure { margin: 1.5rem 0; } .small { font-size: 14px; color: #52606d; }
"""
# Shown where the window is narrow, as are drawings of class "narrow" in place of those of "broad".
_HINT = '<p class="hint small">Scroll the {} sideways to see all of them.</p>'
_NARROW = 380  # pixels: of the plot on a telephone
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
_TURN_COLUMNS = (
    "turn",
    "sent, tokens",
    "grown, tokens",
    "context, tokens",
    "from client, bytes",
    "upstream, bytes",
    "upstream, tokens",
    "errors before the answer",
)


def page(
    introduction: str,
    results: Results,
    story: Sequence[str],
    arrows: Mapping[tuple[str, bool], Sequence[Arrow]],
) -> str:
    """The page. ``arrows``: of the first turn that lost its connection, of each conversation."""
    stored = [growth for (_, store), growth in results.items() if store]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>bridgecore demo</title><style>{_STYLE}</style></head><body>",
        "<h1>What a lost connection costs</h1>",
        f"<p>{escape(introduction)}</p>",
        "<ol>",
        *(f"<li>{escape(line)}</li>" for line in story),
        "</ol>",
        "<h2>Context by turn</h2>",
        f'<figure class="broad">{plot(stored)}</figure>',
        f'<figure class="narrow">{plot(stored, page=_NARROW)}</figure>',
        "<h2>One loss under each policy</h2>",
        "<p>Turn 2: the connection was lost after turn 1, and the next one is lost before "
        "<code>response.created</code>. Grey text is the row, the column and the action of the "
        "policy&#8217;s table that decided.</p>",
        _HINT.format("diagrams"),
    ]
    for store, heading in _HEADINGS.items():
        parts.append(f"<h3>{heading}</h3>")
        for (name, own), seen in arrows.items():
            if own is store:
                title = f"{name}, store={str(store).lower()}"
                parts.append(f'<figure class="wide">{svg(title, in_order(seen))}</figure>')
    parts += [
        "<h2>The numbers</h2>",
        _HINT.format("tables"),
        _table(COLUMNS, rows(results)),
        f'<p class="small">{escape("; ".join(legend()))}.</p>',
    ]
    for (name, store), growth in results.items():
        figures = [
            (
                str(row.turn),
                f"{row.sent:,}",
                f"{row.grown:,}",
                f"{row.context:,}",
                f"{row.client:,}",
                f"{row.upstream:,}",
                f"{row.upstream_tokens:,}",
                ", ".join(counted(row.errors)),
            )
            for row in growth.rows
        ]
        parts.append(f"<details><summary>{escape(name)}, store={str(store).lower()}</summary>")
        parts += [_table(_TURN_COLUMNS, figures), "</details>"]
    # In HTML the elements of SVG need no namespace.
    return "\n".join([*parts, "</body></html>", ""]).replace(_NAMESPACE, "")


_HEADINGS = {
    True: "The upstream stores the responses (store=true)",
    False: "A response lives on its connection only (store=false)",
}


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ['<div class="wide"><table>', _row("th", head)]
    return "\n".join([*lines, *(_row("td", cells) for cells in body), "</table></div>"])


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
