"""What crosses an interface is checked where that is cheap, so that a fault is named where it arises.

Every check raises a `PluginError` that names the class of the component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .document import Document
from .errors import PluginError
from .interfaces import Hit, Output, Selection

if TYPE_CHECKING:
    import numpy as np

# float16 weights normalise to about three digits.
UNIT_NORM_TOLERANCE = 1e-2


def checked_vectors(retriever: object, vectors: Any, *, count: int, dim: int) -> np.ndarray:
    """Vectors as a retriever must give them: float32 [count, dim], finite, unit norm."""
    import numpy as np

    if not isinstance(vectors, np.ndarray) or vectors.shape != (count, dim):
        raise _fault(retriever, f"gave vectors of shape {getattr(vectors, 'shape', None)}, not ({count}, {dim})")
    if vectors.dtype != np.float32:
        raise _fault(retriever, f"gave vectors of dtype {vectors.dtype}, not float32")
    # A NaN or an infinity makes its norm one too, which is not close to 1.
    off = np.abs(np.linalg.norm(vectors, axis=1) - 1)
    if not (off <= UNIT_NORM_TOLERANCE).all():
        raise _fault(retriever, "gave vectors that are not finite and of unit norm")
    return vectors


def checked_hits(memory: object, found: Any, *, count: int, k: int) -> list[list[Hit]]:
    """Hits as a memory must give them: for each query at most k, best first, none twice, with finite scores."""
    if not isinstance(found, list) or len(found) != count:
        raise _fault(memory, f"did not answer {count} queries with a list of {count} lists of hits")
    for hits in found:
        if len(hits) > k:
            raise _fault(memory, f"gave {len(hits)} hits where {k} were asked for")
        scores = [hit.score for hit in hits]
        if not all(score is not None and math.isfinite(score) for score in scores):
            raise _fault(memory, "gave a hit without a finite score")
        if any(scores[i] < scores[i + 1] for i in range(len(scores) - 1)):
            raise _fault(memory, "gave hits that are not sorted, best first")
        if len({hit.id for hit in hits}) != len(hits):
            raise _fault(memory, "gave one document twice")
    return found


def checked_selection(sampler: object, selection: Any, hits: Sequence[Hit], *, k: int) -> Selection:
    """A selection as a sampler must make it: at most k of the hits that it was given, none twice."""
    if not isinstance(selection, Selection):
        raise _fault(sampler, f"gave {type(selection).__name__}, not a Selection")
    if len(selection.hits) > k:
        raise _fault(sampler, f"chose {len(selection.hits)} documents where {k} were asked for")
    given = {hit.id for hit in hits}
    chosen = {hit.id for hit in selection.hits}
    if not chosen <= given:
        raise _fault(sampler, "chose a document that it was not given")
    if len(chosen) != len(selection.hits):
        raise _fault(sampler, "chose one document twice")
    return selection


def checked_outputs(generator: object, made: Any, prompts: Sequence[Document], *, n: int) -> list[list[Output]]:
    """Outputs as a generator must make them: n for each prompt, with every blank filled by its modality."""
    if not isinstance(made, list) or len(made) != len(prompts):
        raise _fault(generator, f"did not answer {len(prompts)} requests with as many lists of outputs")
    for prompt, outputs in zip(prompts, made, strict=True):
        if len(outputs) != n:
            raise _fault(generator, f"made {len(outputs)} samples where {n} were asked for")
        for output in outputs:
            if [part.modality for part in output.document.parts] != [part.modality for part in prompt.parts]:
                raise _fault(generator, "made a document whose parts do not match those of the prompt")
            if output.document.blanks:
                raise _fault(generator, "left a blank unfilled")
            if math.isnan(output.log_probability):
                raise _fault(generator, "gave a log-probability that is not a number")
    return made


def _fault(component: object, what: str) -> PluginError:
    kind = type(component)
    return PluginError(
        f"{kind.__module__}.{kind.__qualname__} {what}.", "This is a fault of the component: tell its authors."
    )
