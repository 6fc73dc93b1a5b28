"""What every memory checks of the vectors that it is given: the retriever normalises, the memory checks."""

from __future__ import annotations

import numpy as np

from ..errors import DimensionMismatch, MemoryStoreError

UNIT_NORM = 1e-3  # how far a norm may be from 1


def unit_vectors(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """The given vectors as float32 [n, dim], contiguous, never written to; dim None: any width.

    Raises `DimensionMismatch` for another width, and `MemoryStoreError` for what is not numbers, not two-dimensional, not
    finite or not of unit norm, naming the first bad row.
    """
    if _is_one(vectors, dim):
        return vectors
    try:
        given = np.asarray(vectors)
        if given.size and given.dtype.kind not in "fiu":
            raise ValueError(f"dtype {given.dtype}")
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(given, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor that wants a gradient raises the last
        raise MemoryStoreError(f"Vectors are float32 [n, dim]; these cannot be read as such: {error}.") from error
    if rows.ndim == 1 and not rows.size:
        return rows.reshape(0, dim or 0)
    if rows.ndim != 2:
        raise MemoryStoreError(
            f"Vectors are [n, dim]; these have the shape {list(rows.shape)}.", "For a single one give vector[None]."
        )
    if dim is not None and rows.shape[1] != dim:
        raise DimensionMismatch(
            f"The vectors have width {rows.shape[1]}; the memory has width {dim}.",
            "Use the encoder that it is bound to.",
        )
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    sound = np.abs(norms - 1) <= UNIT_NORM
    if not sound.all():
        row = int(np.argmin(sound))
        if not np.isfinite(rows[row]).all():
            raise MemoryStoreError(f"Vector {row} is not finite.", "Look at the encoder, or at what it was given.")
        mend = "Divide each by its L2 norm: vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)."
        raise MemoryStoreError(
            f"Vector {row} has the norm {norms[row]:.6g}, not 1.", mend if norms[row] else "Leave out what has none."
        )
    return rows


def _is_one(vectors: np.ndarray, dim: int | None) -> bool:
    """Whether this is one sound vector, as for a search, which need not be looked at more closely."""
    return (
        type(vectors) is np.ndarray
        and vectors.dtype == np.float32
        and vectors.ndim == 2
        and vectors.shape == (1, dim or vectors.shape[1])
        and vectors.flags.c_contiguous
        and abs(float(np.vdot(vectors, vectors)) - 1) <= UNIT_NORM  # the norm itself is nearer still
    )
