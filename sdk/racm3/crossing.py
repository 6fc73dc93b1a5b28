"""What crosses an interface is checked where that is cheap, so that a fault is named where it arises.

Every check raises a `PluginError` that names the component, and the plugin that it comes from. What a component raises
itself comes out as it is, with a note that names it (`calling`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .discovery import describe
from .document import Document, Text
from .errors import PluginError, RACM3Error
from .interfaces import Encoder, Event, Generator, Hit, Output, Score, Selection, Skip
from .options import Options
from .registry import registry

if TYPE_CHECKING:
    import numpy as np

MODALITIES = frozenset({"text", "image"})


@contextmanager
def calling(component: object) -> Iterator[None]:
    """For the time that a component is at work: an error of its own gets a note that says whose it is, and what would
    end the process, such as `SystemExit`, becomes a `PluginError`."""
    try:
        yield
    except (RACM3Error, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        error.add_note(f"Raised by {registry().owner(component)[0]}.")
        raise
    except BaseException as error:
        raise _fault(component, f"raised {describe(error)}") from error


def checked_encoder(retriever: object, encoder: Any) -> Encoder:
    """The encoder that a retriever states: a fingerprint, and a width of at least 1."""
    stated = isinstance(encoder, Encoder) and isinstance(encoder.fingerprint, str) and isinstance(encoder.dim, int)
    if not stated or not encoder.fingerprint or encoder.dim < 1:
        raise _fault(retriever, f"states {encoder!r}, not an Encoder with a fingerprint and a width")
    return encoder


def checked_generator(generator: Generator) -> Generator:
    """A generator that says what it accepts, what it emits, and which options it takes."""
    for name in ("accepts", "emits"):
        stated = getattr(generator, name, None)
        if not isinstance(stated, (frozenset, set)) or not stated <= MODALITIES:
            raise _fault(generator, f"states {name} = {stated!r}, not a frozenset of 'text' and 'image'")
    own = generator.options_type
    if own is not None and not (isinstance(own, type) and issubclass(own, Options)):
        raise _fault(generator, f"states options_type = {own!r}, not a subclass of Options")
    return generator


def checked_vectors(retriever: object, vectors: Any, *, count: int, dim: int) -> np.ndarray:
    """Vectors as a retriever must give them: float32 [count, dim], finite, unit norm as exactly as memories ask."""
    import numpy as np

    from .memories.vectors import UNIT_NORM

    if not isinstance(vectors, np.ndarray):
        raise _fault(retriever, f"gave {type(vectors).__name__}, not an array of shape ({count}, {dim})")
    if vectors.shape != (count, dim):
        raise _fault(retriever, f"gave vectors of shape {vectors.shape}, not ({count}, {dim})")
    if vectors.dtype != np.float32:
        raise _fault(retriever, f"gave vectors of dtype {vectors.dtype}, not float32")
    # A NaN or an infinity makes its norm one too, which is not close to 1. Near 1 a square is off by twice as much.
    squares = np.einsum("nd,nd->n", vectors, vectors)
    if not (np.abs(squares - 1) <= 2 * UNIT_NORM).all():
        raise _fault(retriever, "gave vectors that are not finite and of unit norm")
    return vectors


def checked_hits(memory: object, found: Any, *, count: int, k: int) -> list[list[Hit]]:
    """Hits as a memory must give them: for each query at most k, best first, none twice, with finite scores."""
    if not isinstance(found, list) or len(found) != count:
        raise _fault(memory, f"did not answer {count} queries with a list of {count} lists of hits")
    for hits in found:
        if not isinstance(hits, list) or not all(isinstance(hit, Hit) for hit in hits):
            raise _fault(memory, "answered a query with something else than a list of Hit")
        if len(hits) > k:
            raise _fault(memory, f"gave {len(hits)} hits where {k} were asked for")
        scores = [hit.score for hit in hits]
        if not all(map(_finite, scores)):
            raise _fault(memory, "gave a hit without a finite score")
        if any(scores[i] < scores[i + 1] for i in range(len(scores) - 1)):  # type: ignore[operator]
            raise _fault(memory, "gave hits that are not sorted, best first")
        if len({hit.id for hit in hits}) != len(hits):
            raise _fault(memory, "gave one document twice")
    return found


def checked_candidates(memory: object, hits: list[Hit], *, dim: int) -> list[Hit]:
    """Hits whose vectors a sampler can compare: [dim] each, and finite."""
    import numpy as np

    if any(getattr(hit.vector, "shape", None) != (dim,) for hit in hits):
        raise _fault(memory, f"gave a hit whose vector is not of shape ({dim},)")
    if hits and not np.isfinite(np.stack([hit.vector for hit in hits])).all():  # type: ignore[misc]
        raise _fault(memory, "gave a hit whose vector is not finite")
    return hits


def checked_documents(memory: object, ids: Sequence[str], documents: Any) -> list[Document | None]:
    """Documents as a memory must read them back: one for each id, or None."""
    if not isinstance(documents, list) or len(documents) != len(ids):
        raise _fault(memory, f"did not answer {len(ids)} ids with a list of {len(ids)} documents")
    for asked, document in zip(ids, documents, strict=True):
        if document is not None and (not isinstance(document, Document) or document.id != asked):
            raise _fault(memory, f"gave {document!r} for the document {asked!r}")
    return documents


def checked_selection(sampler: object, selection: Any, hits: Sequence[Hit], *, k: int) -> Selection:
    """A selection as a sampler must make it: at most k of the hits that it was given, none twice."""
    if not isinstance(selection, Selection):
        raise _fault(sampler, f"gave {type(selection).__name__}, not a Selection")
    if not isinstance(selection.hits, list) or not all(isinstance(hit, Hit) for hit in selection.hits):
        raise _fault(sampler, "chose something else than a list of Hit")
    if not isinstance(selection.skipped, list) or not all(isinstance(skip, Skip) for skip in selection.skipped):
        raise _fault(sampler, "passed over something else than a list of Skip")
    if len(selection.hits) > k:
        raise _fault(sampler, f"chose {len(selection.hits)} documents where {k} were asked for")
    given = {hit.id: hit for hit in hits}
    if any(given.get(hit.id) is not hit for hit in selection.hits):
        raise _fault(sampler, "chose a document that it was not given")
    if len({hit.id for hit in selection.hits}) != len(selection.hits):
        raise _fault(sampler, "chose one document twice")
    return selection


def checked_outputs(generator: object, made: Any, prompts: Sequence[Document], *, n: int) -> list[list[Output]]:
    """Outputs as a generator must make them: n for each prompt, which is the prompt with every blank filled by its
    modality."""
    if not isinstance(made, list) or len(made) != len(prompts):
        raise _fault(generator, f"did not answer {len(prompts)} requests with as many lists of outputs")
    for prompt, outputs in zip(prompts, made, strict=True):
        if not isinstance(outputs, list) or len(outputs) != n:
            number = len(outputs) if isinstance(outputs, list) else type(outputs).__name__
            raise _fault(generator, f"made {number} samples where {n} were asked for")
        for output in outputs:
            _check_output(generator, output, prompt)
    return made


def next_event(generator: object, events: Iterator[Event]) -> Event:
    """The next event of a stream that has not given its answer yet; the outputs of the last one are checked as any."""
    with calling(generator):
        event = next(events, None)
    if event is None:
        raise _fault(generator, "ended its stream without an answer")
    if not isinstance(event, Event):
        raise _fault(generator, f"streamed {type(event).__name__}, not an Event")
    return event


def checked_scores(generator: object, scores: Any, *, count: int) -> list[Score]:
    """Scores as a generator must give them: one for each target, of log-probabilities that are numbers."""
    if not isinstance(scores, list) or len(scores) != count:
        raise _fault(generator, f"did not answer {count} targets with a list of {count} scores")
    for score in scores:
        if not isinstance(score, Score) or not isinstance(score.log_probabilities, tuple):
            raise _fault(generator, f"gave {type(score).__name__}, not a Score with a tuple of log-probabilities")
        if not all(map(_number, score.log_probabilities)):
            raise _fault(generator, "gave a log-probability that is not a number")
    return scores


def _check_output(generator: object, output: Any, prompt: Document) -> None:
    if not isinstance(output, Output) or not isinstance(output.document, Document):
        raise _fault(generator, f"made {type(output).__name__}, not an Output with a Document")
    parts = output.document.parts
    if [part.modality for part in parts] != [part.modality for part in prompt.parts]:
        raise _fault(generator, "made a document whose parts do not match those of the prompt")
    if output.document.blanks:
        raise _fault(generator, "left a blank unfilled")
    if any(type(asked) is Text and part != asked for asked, part in zip(prompt.parts, parts, strict=True)):
        raise _fault(generator, "changed a text of the prompt")
    if not _number(output.log_probability):
        raise _fault(generator, "gave a log-probability that is not a number")
    seen = output.grounded_on
    if seen is not None and not (
        isinstance(seen, tuple)
        and all(type(place) is int and place >= 0 for place in seen)
        and len(set(seen)) == len(seen)
    ):
        raise _fault(generator, f"says that it saw the documents {seen!r}, not places in the context")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _number(value: Any) -> bool:
    """An infinity is one: what has no probability has a log-probability of minus infinity."""
    try:
        return not math.isnan(value)
    except TypeError:
        return False


def _fault(component: object, what: str) -> PluginError:
    whose, plugin = registry().owner(component)
    if plugin is None:
        return PluginError(f"{whose} {what}.", "This is a fault of the component: tell its authors.")
    return PluginError(f"{whose} {what}.", f"This is a fault of the plugin: tell its authors. {plugin.way_out}")
