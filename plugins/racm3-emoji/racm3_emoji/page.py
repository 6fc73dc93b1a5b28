"""The page of the demo: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from racm3 import Generation
from racm3.evaluation.page import grounds, page, picture, table

from .demo import Comparison


def render(comparisons: Sequence[Comparison], *, seed: int, seconds: float) -> str:
    """The whole page."""
    drawings = table(
        ["Prompt", "Retrieved documents, with scores", "Drawn with them", "Drawn without", "The true drawing"],
        map(_drawing_row, comparisons),
    )
    captions = table(
        ["Drawing", "Retrieved documents, with scores", "Caption with them", "Caption without", "The true caption"],
        map(_caption_row, comparisons),
        kind="captions",
    )
    body = f"""<h1>{len(comparisons)} things that the model never saw</h1>
<p class="lead">None of these emoji was in the training data, in anybody's drawing. With retrieval, the model looks at
what <em>other</em> vendors drew; the drawing that was asked for is not in the memory. Without retrieval it has the
words alone. The things are not picked: flags first, then one from each group in turn. Seed {seed}, {seconds:.0f} s.</p>
<h2>Text to picture</h2>{drawings}
<h2>Picture to text</h2><p>✓ the true caption, word for word; ✗ another.</p>{captions}"""
    return page(f"racm3: {len(comparisons)} things that the model never saw", body)


def _drawing_row(comparison: Comparison) -> str:
    text = comparison.truth.texts[0]
    return (
        f'<tr><td class="prompt">{escape(text)}</td><td class="hits">{grounds(comparison.drawn.hits)}</td>'
        f"<td>{picture(comparison.drawn.image, text)}</td><td>{picture(comparison.drawn_alone.image, text)}</td>"
        f"<td>{picture(comparison.truth.image, text)}</td></tr>"
    )


def _caption_row(comparison: Comparison) -> str:
    truth = comparison.truth.texts[0]
    return (
        f"<tr><td>{picture(comparison.truth.image, truth)}</td>"
        f'<td class="hits">{grounds(comparison.captioned.hits)}</td><td>{_caption(comparison.captioned, truth)}</td>'
        f"<td>{_caption(comparison.captioned_alone, truth)}</td><td>{escape(truth)}</td></tr>"
    )


def _caption(generation: Generation, truth: str) -> str:
    text = generation.text or ""
    right = text == truth
    return f'<span class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {escape(text)}</span>'
