"""The page of the demo: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from racm3 import Generation, Image

from .demo import Comparison

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
img { width: 96px; height: 96px; image-rendering: pixelated; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.hits img { width: 64px; height: 64px; } .hits figure { width: 6.4rem; }
.wrap { overflow-x: auto; } .right { color: light-dark(#1a7f37, #4ac26b); } .wrong { color: light-dark(#b35900, #f0a050); }
"""


def render(comparisons: Sequence[Comparison], *, seed: int, seconds: float) -> str:
    """The whole page."""
    drawings = "".join(_drawing_row(comparison) for comparison in comparisons)
    captions = "".join(_caption_row(comparison) for comparison in comparisons)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>racm3: {len(comparisons)} things that the model never saw</title><style>{_STYLE}</style></head><body>
<h1>{len(comparisons)} things that the model never saw</h1>
<p class="lead">None of these emoji was in the training data, in anybody's drawing. With retrieval, the model looks at
what <em>other</em> vendors drew; the drawing that was asked for is not in the memory. Without retrieval it has the
words alone. The things are not picked: flags first, then one from each group in turn. Seed {seed}, {seconds:.0f} s.</p>
<h2>Text to picture</h2><div class="wrap"><table>
<tr><th>Prompt</th><th>Retrieved documents, with scores</th><th>Drawn with them</th><th>Drawn without</th>
<th>The true drawing</th></tr>{drawings}</table></div>
<h2>Picture to text</h2><div class="wrap"><table class="captions">
<tr><th>Drawing</th><th>Retrieved documents, with scores</th><th>Caption with them</th><th>Caption without</th>
<th>The true caption</th></tr>{captions}</table></div>
</body></html>
"""


def _drawing_row(comparison: Comparison) -> str:
    text = comparison.truth.texts[0]
    return (
        f'<tr><td class="prompt">{escape(text)}</td><td class="hits">{_hits(comparison.drawn)}</td>'
        f"<td>{_picture(comparison.drawn.image, text)}</td><td>{_picture(comparison.drawn_alone.image, text)}</td>"
        f"<td>{_picture(comparison.truth.image, text)}</td></tr>"
    )


def _caption_row(comparison: Comparison) -> str:
    truth = comparison.truth.texts[0]
    return (
        f"<tr><td>{_picture(comparison.truth.image, truth)}</td>"
        f'<td class="hits">{_hits(comparison.captioned)}</td><td>{_caption(comparison.captioned, truth)}</td>'
        f"<td>{_caption(comparison.captioned_alone, truth)}</td><td>{escape(truth)}</td></tr>"
    )


def _caption(generation: Generation, truth: str) -> str:
    text = generation.text or ""
    return f'<span class="{"right" if text == truth else "wrong"}">{escape(text)}</span>'


def _hits(generation: Generation) -> str:
    shown = []
    for hit in generation.hits:
        document = hit.document
        score = "by hand" if hit.score is None else f"{hit.score:.3f}"
        caption = f"<figcaption><b>{score}</b> {escape(document.text)}</figcaption>"
        shown.append(f"<figure>{_picture(document.image, document.text)}{caption}</figure>")
    return "".join(shown) or '<span class="note">none</span>'


def _picture(image: Image | None, alt: str) -> str:
    if image is None:
        return ""
    buffer = io.BytesIO()
    image.picture.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'
