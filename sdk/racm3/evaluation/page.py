"""Pages that show what was made beside what it was made from: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

from ..document import Image
from ..interfaces import Hit

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: light-dark(#555, #aaa); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p.lead, .note { color: var(--soft); } p.lead { max-width: 46rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; font-size: .85rem; padding: .3rem .6rem; border-bottom: 2px solid var(--line); }
td { padding: .7rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.prompt { font-weight: 600; }
table.captions { table-layout: fixed; } table.captions th:first-child { width: 7rem; }
table.captions th:nth-child(2) { width: 15rem; }
figure { display: inline-block; margin: 0 .6rem 0 0; width: 7.2rem; vertical-align: top; }
figcaption { font-size: .75rem; line-height: 1.3; color: var(--soft); margin-top: .25rem; overflow-wrap: anywhere; }
img { width: 96px; height: 96px; object-fit: contain; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
img.pixels { image-rendering: pixelated; }
.hits img { width: 64px; height: 64px; } .hits figure { width: 6.4rem; }
.wrap { overflow-x: auto; } .right { color: light-dark(#1a7f37, #4ac26b); } .wrong { color: light-dark(#b35900, #f0a050); }
td.figure { white-space: nowrap; } td.figure small { color: var(--soft); }
"""
# A page holds thumbnails: larger pictures would make it of hundreds of megabytes.
_SIDE = 192


def page(title: str, body: str) -> str:
    """A whole document. title: as text; body: as HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
{body}
</body></html>
"""


def table(columns: Iterable[str], rows: Iterable[str], *, kind: str = "") -> str:
    """Columns as text, rows as HTML."""
    heads = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f'<div class="wrap"><table class="{kind}">\n<tr>{heads}</tr>{"".join(rows)}</table></div>'


def picture(image: Image | None, alt: str) -> str:
    """A picture, inside the page; nothing for None."""
    if image is None:
        return ""
    shown = image.picture
    kind = ' class="pixels"' if max(shown.size) <= _SIDE else ""  # small drawings are shown larger than they are
    if max(shown.size) > _SIDE:
        shown = shown.copy()
        shown.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img{kind} alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'


def grounds(hits: Iterable[Hit]) -> str:
    """The documents that an answer stands on, with their scores."""
    shown = []
    for hit in hits:
        document = hit.document
        score = "by hand" if hit.score is None else f"{hit.score:.3f}"
        caption = f"<figcaption><b>{score}</b> {escape(document.text)}</figcaption>"
        shown.append(f"<figure>{picture(document.image, document.text)}{caption}</figure>")
    return "".join(shown) or '<span class="note">none</span>'
