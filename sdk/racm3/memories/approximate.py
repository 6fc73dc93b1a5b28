"""Indexes that answer without looking at every vector, by name: for memories too large to scan.

name        is                                                maps from its file, of a vector of width 512
exact       a scan of all vectors                             1,024 bytes
hnsw        a graph; slow to build, needs no training         1,240 bytes
ivf         cells, of which the nearest are scanned           1,032 bytes
ivf-pq      the same, over compressed vectors                 72 bytes

How far the last three look is measured when they are made: as far as it takes for some of the memory's own documents to
find 99.5 % of their true neighbours. Queries that are less like the documents find somewhat less. Whatever is found is
scored again by the vectors as they were given, so that scores are exact and ties come in order. With a filter all of them
are exact: the vectors that it lets through are scanned. Documents that are added later are scanned, too, until there are
some thousands of them; then they enter the index. Any other name is a FAISS factory string, such as "IVF1024,SQ8", which
looks as far as FAISS does of itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MemoryStoreError, nearest
from . import scan
from .index import Found, VectorIndex
from .segment import ROWS

if TYPE_CHECKING:
    import faiss

    from .faiss_file import FaissFile

NAMES = ("exact", "hnsw", "ivf", "ivf-pq", "auto")
AS_HALVES = ("hnsw", "ivf")  # whose vectors are float16, so that their scores are nearly exact
CELLS = ("ivf", "ivf-pq")
SMALL = 10_000  # up to so many documents every named index is exact: a scan takes no longer
AUTO = 200_000  # up to so many "auto" is exact, beyond it is ivf
SAMPLE = 40  # vectors for each cell that training looks at; FAISS wants 39
CELL = 64  # documents in a cell on average, at least: with fewer, choosing cells takes longer than looking at what they hold
CODED = 64  # cells, from which on it is worth finding them by codes
REFINED = 8  # times as many of these as are scanned are told apart by their centres
ROUNDS = 5  # of k-means over all cells, behind a start that is near already
NEIGHBOURS = 24  # of a node in the graph of hnsw
CANDIDATES = 64  # among which they are chosen: of 40, as FAISS has it, a search would take twice as long
FOUND = 0.995  # of their nearest neighbours, documents that are asked for should find
ASKED, NEAREST = 256, 10  # so many documents, and so many neighbours of each
GAIN = 0.001  # in that share, for which it is worth looking half as far again
KEPT, SCANNED = 48, 4  # candidates that a search of the graph keeps, cells that are scanned: so many at least
MOST = 1024  # and at most
WIDTH = 128  # candidates of compressed vectors, at least
OVERFETCH = 10  # how many times more than wanted is scored again
LATE = 4096  # documents that came after the others are scanned; more than so many enter FAISS's index
MAX_FETCH = 2048  # beyond so many results of a query a scan is quicker than FAISS's heap

_CELLS = re.compile(r"(?:[^,]*,)*?IVF(\d+)")
LONGEST = 256  # characters of a factory string
# Numbers of 0 anywhere, and a graph of one neighbour: FAISS divides by them, or waits for ever.
_ENDS_THE_PROCESS = re.compile(r"(?<!\d)0+(?!\d)|(HNSW|NSG)0*1(?!\d)")
_REASON = re.compile(r"^Error in .* at \S+:\d+: (Error: '.*' failed: )?", re.DOTALL)  # what FAISS says before it


def check_name(name: str, dim: int) -> None:
    """Raise `MemoryStoreError` unless an index of a width can be made by that name."""
    if name not in NAMES:
        try:
            if _ENDS_THE_PROCESS.search(name) or len(name) > LONGEST or not name.isprintable():
                raise ValueError("FAISS does not survive it")
            _by_factory(name, dim)
        except Exception as error:  # a TypeError of what is no str, too
            shown = f"{str(name)[:LONGEST]!r}"
            hint = f"{nearest(str(name)[:LONGEST], NAMES)} Use {', '.join(NAMES)}, or a factory string of FAISS."
            raise MemoryStoreError(f"No index {shown} of width {dim}.", hint.strip()) from error


def chosen(name: str, documents: int) -> str:
    """What an index of that name is for so many documents."""
    if not documents or (name in NAMES and documents <= SMALL):
        return "exact"
    return ("exact" if documents <= AUTO else "ivf") if name == "auto" else name


def made_of(index: VectorIndex, name: str, progress: Callable[[int], object] | None = None) -> VectorIndex:
    """The index by a name for the documents of another one, as far as that is: trained where it has to be, and filled.

    progress: called with the number of documents that are in it. Raises `MemoryStoreError` when there is no such index, or
    none can be made of these documents.
    """
    check_name(name, index.dim)
    kind = chosen(name, len(index.seqs) - index.dead)
    if kind == index.kind == "exact":
        return index
    index = index.compacted()
    if kind == "exact":
        return index.over(index.segments)
    if (cells := _CELLS.match(kind)) and int(cells[1]) > len(index.seqs):  # FAISS tries for a minute
        raise MemoryStoreError(
            f"No index {name!r} can be made of {len(index.seqs)} documents: it has {int(cells[1]):,} cells, each of which needs one.",
            f"Use {', '.join(NAMES)}.",
        )
    made, sampled = _made(kind, index.dim, len(index.seqs))
    if not made.is_trained:
        rng = np.random.default_rng(0)
        sample = np.sort(rng.choice(index.seqs, size=min(len(index.seqs), sampled), replace=False))
        with _making(kind, len(index.seqs)):
            vectors = index.records(sample).vectors
            if kind in CELLS:
                made.quantizer.add(_centres(vectors, made.nlist))
            made.train(vectors)
    for segment in index.segments:
        for start in range(0, len(segment), ROWS):
            with _making(kind, len(index.seqs)):
                made.add(np.ascontiguousarray(segment.vectors[start : start + ROWS]))
            if progress is not None:
                progress(made.ntotal)
    if kind in CELLS:
        with _making(kind, len(index.seqs)):
            _choose_quickly(made, sparing=kind == "ivf-pq")
    found = ApproximateIndex(kind, index, made)
    found.tune()
    return found


def _made(kind: str, dim: int, documents: int) -> tuple[Any, int]:
    """A FAISS index that is not trained yet, and how many vectors to train it with."""
    import faiss

    if kind == "hnsw":
        graph: Any = faiss.index_factory(dim, f"HNSW{NEIGHBOURS}_SQfp16", faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = CANDIDATES
        return graph, SAMPLE
    if kind not in NAMES:
        return _by_factory(kind, dim), 2**17
    cells = max(1, min(int(8 * math.sqrt(documents)), documents // CELL))
    if kind == "ivf":
        made: Any = faiss.index_factory(dim, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        made.by_residual = False  # scores are by the vectors, whatever becomes of the centres
        return made, SAMPLE * cells
    made = faiss.index_factory(dim, f"IVF{cells},PQ{_subspaces(dim, 8)}", faiss.METRIC_INNER_PRODUCT)
    made.do_polysemous_training = False  # it takes most of the time, for a search by Hamming distance that is not made
    return made, max(SAMPLE * cells, 2**14)


def _by_factory(name: str, dim: int) -> faiss.Index:
    """An index by FAISS's own name for it, without a map of ids, since labels are rows here. Those that know no inner products
    go by distances: of unit vectors the nearest are the same."""
    import faiss

    name = re.sub("^IDMap2?,", "", name)
    try:
        return faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        return faiss.index_factory(dim, name, faiss.METRIC_L2)


def _subspaces(dim: int, numbers: int) -> int:
    """How many pieces to cut vectors into, of so many numbers each or a few more: FAISS wants them all alike."""
    return next(pieces for pieces in range(max(1, dim // numbers), 0, -1) if dim % pieces == 0)


def _centres(vectors: np.ndarray, cells: int) -> np.ndarray:
    """The centres of so many cells for vectors (float32 [n, dim]): float32 [cells, dim].

    K-means that starts where smaller ones have ended, which cluster the vectors coarsely and then each of these clusters:
    in half of the time it leaves fewer documents in cells where nobody looks for them than one that starts anywhere.
    """
    import faiss

    def clustered(rows: np.ndarray, count: int, start: np.ndarray | None = None) -> faiss.Kmeans:
        rounds = 10 if start is None else ROUNDS
        means = faiss.Kmeans(rows.shape[1], count, niter=rounds, spherical=True, min_points_per_centroid=1)
        means.train(rows, init_centroids=start)
        return means

    coarse = clustered(vectors, math.isqrt(cells))
    _, cluster = coarse.assign(vectors)
    sizes = np.bincount(cluster, minlength=coarse.k)
    counts = np.diff(np.cumsum(sizes) * cells // len(vectors), prepend=0)  # each gets cells by its size
    fine = [clustered(vectors[cluster == number], count) for number, count in enumerate(counts.tolist()) if count]
    return np.asarray(clustered(vectors, cells, np.concatenate([means.centroids for means in fine])).centroids)


@contextmanager
def _making(name: str, documents: int) -> Iterator[None]:
    """FAISS's errors as ours: which strings of its factory need how many vectors, or none, is found out by trying."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = "more memory than there is" if isinstance(error, MemoryError) else _REASON.sub("", str(error)).strip()
        raise MemoryStoreError(
            f"No index {name!r} can be made of {documents} documents: {why}.", f"Use {', '.join(NAMES)}."
        ) from error


def _choose_quickly(index: Any, *, sparing: bool) -> None:
    """Have the nearest of filled cells found sooner than by their centres: by codes of two bits a number, and of what is left
    by bfloat16; sparing: by codes alone, in an eighth of the memory. Filling is quicker as they were."""
    import faiss

    wide, dim = index.quantizer, index.d
    centres = wide.reconstruct_n(0, index.nlist)
    narrow: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT)
    codes: Any = faiss.index_factory(dim, f"PQ{_subspaces(dim, 2)}x4fs", faiss.METRIC_INNER_PRODUCT)
    codes.pq.cp.min_points_per_centroid = 1
    parts = [codes] if sparing else [codes, narrow]
    if index.nlist < CODED or dim > 4 * _subspaces(dim, 2):  # of a width that cannot be cut, codes say little
        parts = [narrow]
    for part in parts:
        part.train(centres)
        part.add(centres)
    quantizer: Any = parts[0] if len(parts) == 1 else faiss.IndexRefine(codes, narrow)
    if len(parts) > 1:
        quantizer.k_factor = REFINED
        quantizer.own_fields = quantizer.own_refine_index = True
        codes.this.disown()
        narrow.this.disown()
    quantizer.this.disown()  # the index owns what finds its cells, and owns another from now on
    index.quantizer = quantizer
    wide.this.own(True)


class ApproximateIndex(VectorIndex):
    """An index of FAISS that finds candidates, beside the vectors, by which what it finds is scored exactly.

    index: the exact one that it is made of; faiss: over the same documents, its labels being the rows, except for `LATE` at
    the end at most. effort: how far it looks, in cells or in candidates of the graph. recall: what share it was measured to
    find with it; None: not measured. file: that `faiss` is mapped from; None: it is in memory.
    """

    def __init__(
        self,
        kind: str,
        index: VectorIndex,
        faiss: faiss.Index,
        *,
        effort: int = 4,
        recall: float | None = None,
        file: FaissFile | None = None,
    ) -> None:
        super().__init__(index.dim, index.segments, index.seqs)
        self.last_seq, self.generation, self._alive = index.last_seq, index.generation, index._alive
        self.kind, self.faiss, self.effort, self.recall, self.file = kind, faiss, effort, recall, file
        self.sparing = kind == "ivf-pq"
        self._late = np.empty((0, self.dim), dtype=np.float32)  # vectors of the documents that came after the others
        self._doubt = scan.doubt(self.dim, rounded=1)

    def tune(self) -> None:
        """Look as far as it takes to find `FOUND` of the neighbours of documents, or as it is worth it."""
        if self.kind not in NAMES or len(self.seqs) <= NEAREST:
            return
        self.effort = KEPT if self.kind == "hnsw" else SCANNED
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(self.seqs), size=min(ASKED, len(self.seqs)), replace=False))
        queries, itself = np.ascontiguousarray(self._at(rows).vectors), list(rows[:, None])  # which every search finds
        least = [np.sort(found.scores)[-NEAREST:].min() for found in self._scan(queries, NEAREST, None, itself)]
        while True:
            before, answer = self.recall or 0, self._find(queries, NEAREST, None, itself)
            near = [np.count_nonzero(found.scores >= low) for found, low in zip(answer, least, strict=True)]
            self.recall = float(np.mean(np.minimum(near, NEAREST))) / NEAREST
            if self.recall >= FOUND or self.recall < before + GAIN or self.effort >= MOST:
                return
            self.effort = self.effort * 3 // 2

    def append(self, seqs: np.ndarray, vectors: np.ndarray, names: np.ndarray | None = None) -> None:
        super().append(seqs, vectors, names)
        if len(self.seqs) - self.faiss.ntotal > LATE:
            self.take_in()

    def take_in(self) -> None:
        """Bring the documents that came after the others into FAISS's index, which is read into memory for it."""
        if self.faiss.ntotal == len(self.seqs):
            return
        if self.file is not None:
            self.faiss, self.file = self.file.whole(), None
        self._late = self._late[:0]
        for start in range(self.faiss.ntotal, len(self.seqs), ROWS):
            self.faiss.add(np.ascontiguousarray(self._at(np.arange(start, min(start + ROWS, len(self.seqs)))).vectors))

    def _find(
        self, queries: np.ndarray, k: int, wanted: np.ndarray | None, excluded: Sequence[np.ndarray]
    ) -> Iterator[Found]:
        fetch = self._fetch(k) + max(map(len, excluded))
        if fetch > MAX_FETCH:
            yield from self._scan(queries, k, wanted, excluded)
            return
        there = len(self.seqs) if wanted is None else int(np.count_nonzero(wanted))
        indexed = self.faiss.ntotal
        search = self.faiss.search if self.file is None else self.file.search
        found = search(queries, min(fetch, indexed), params=self._parameters(fetch, wanted))
        for query, scores, rows, gone in zip(queries, *found, excluded, strict=True):
            labels = rows.tolist()
            # -1 stands for no result; any other label that is out of range is damage in the file.
            if not 0 <= min(labels) <= max(labels) < indexed:
                known = (rows >= 0) & (rows < indexed)
                rows, scores = rows[known], scores[known]
                labels = rows.tolist()
            damaged = len(set(labels)) < len(labels)  # and so is a label that comes twice
            if len(gone) or wanted is not None:
                near = ~np.isin(rows, gone) if wanted is None else wanted[rows] & ~np.isin(rows, gone)
                rows, scores = rows[near], scores[near]
            if self.kind in AS_HALVES and len(rows) > k:  # best first; what lies too far behind the k-th is not read
                rows = rows[scores >= scores[k - 1] - self._doubt]
            if len(self.seqs) > indexed:
                rows = np.concatenate([rows, self._late_ones(query, k, wanted, gone)])
            if damaged or len(rows) < min(k, there - len(gone)):  # it did not look far enough
                yield from self._scan(query[None], k, wanted, [gone])
            else:
                yield self._best(query, rows, k)

    def _late_ones(self, query: np.ndarray, k: int, wanted: np.ndarray | None, gone: np.ndarray) -> np.ndarray:
        """Those rows behind FAISS's that may be among the k best."""
        first = self.faiss.ntotal
        if len(self._late) != len(self.seqs) - first:
            self._late = np.ascontiguousarray(self._at(np.arange(first, len(self.seqs))).vectors)
        scores = self._late @ query
        if wanted is not None:
            scores[~wanted[first:]] = -np.inf
        scores[gone[gone >= first] - first] = -np.inf
        return first + scan.may_be_best(scores, k, self.dim)

    def _fetch(self, k: int) -> int:
        """How many candidates to ask for. Where scores are as good as exact, a few more than k leave room for ties."""
        return k + 16 if self.kind in AS_HALVES else max(OVERFETCH * k, WIDTH)

    def _parameters(self, fetch: int, wanted: np.ndarray | None) -> Any:
        import faiss

        effort = max(self.effort, fetch) if self.kind == "hnsw" else self.effort
        if wanted is None:
            return _usual(self.kind, effort)
        return _parameters(self.kind, effort, faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little")))  # type: ignore[call-arg, arg-type]


def _parameters(kind: str, effort: int, only: faiss.IDSelector | None = None) -> Any:
    """How far FAISS is to look, and at what."""
    import faiss

    if kind == "hnsw":
        return faiss.SearchParametersHNSW(sel=only, efSearch=effort)  # type: ignore[attr-defined]
    if kind in CELLS:
        return faiss.SearchParametersIVF(sel=only, nprobe=effort)  # type: ignore[call-arg]
    return None  # not every kind takes a selector


_usual = lru_cache(_parameters)  # to make them takes a tenth of a search
