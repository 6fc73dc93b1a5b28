"""The four interfaces, and what passes between them: the one file that a plugin writer reads.

    document -> Retriever.encode_document -> MemoryStore.add                                    (indexing)
    prompt -> Retriever.encode_query -> MemoryStore.search -> Sampler.sample -> Generator.generate

Scores are inner products of unit vectors: higher is better, ties are broken by id. The retriever normalises, the memory
checks. A component is a plain class; the annotated keyword arguments of its constructor are its settings. Every rule here
is a check of a contract in `racm3.testing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from .document import Blank, Document, Image, Modality, Text

if TYPE_CHECKING:
    import numpy as np

    from .options import Options

Where: TypeAlias = Mapping[str, Any]
Progress: TypeAlias = Callable[[int, int, str], None]
OnDuplicate: TypeAlias = Literal["error", "skip", "replace"]


@dataclass(frozen=True)
class Encoder:
    """What makes vectors comparable: a fingerprint over weights, architecture, preprocessing and pooling, and a width."""

    fingerprint: str
    dim: int


class Hit:
    """A document found in a memory. The document itself is read from the store when it is first looked at.

    score: inner product with the query, or None for a document given by hand. vector: float32 [dim], unit norm.
    hashes: content hashes of the document's parts, by which exact duplicates are recognised; or what to call for them, when
    they are first looked at.
    """

    __slots__ = ("_document", "_hashes", "_load", "id", "score", "vector")

    def __init__(
        self,
        document: Document | None = None,
        *,
        score: float | None = None,
        vector: np.ndarray | None = None,
        id: str | None = None,
        hashes: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        load: Callable[[], Document] | None = None,
    ) -> None:
        if document is None and (id is None or hashes is None or load is None):
            raise TypeError("A Hit needs its document, or an id, hashes and a way to load it.")
        self._document, self._load, self._hashes = document, load, hashes
        self.id: str = document.id if document is not None and id is None else str(id)
        self.score, self.vector = score, vector

    @property
    def hashes(self) -> frozenset[str]:
        if not isinstance(self._hashes, frozenset):
            given = self._hashes() if callable(self._hashes) else self._hashes
            self._hashes = frozenset((part.content_hash for part in self.document.parts) if given is None else given)
        return self._hashes

    @property
    def document(self) -> Document:
        if self._document is None:
            assert self._load is not None
            self._document = self._load()
        return self._document

    def __repr__(self) -> str:
        score = "by hand" if self.score is None else f"{self.score:.4f}"
        return f"Hit({self.id[:24]!r}, {score})"


@dataclass(frozen=True)
class Query:
    """What was asked: the prompt as a document, and its vector (float32 [dim]; None when nothing in it can be encoded)."""

    document: Document
    vector: np.ndarray | None = None


@dataclass(frozen=True)
class Skip:
    """A candidate that a sampler passed over, why, and because of which document (None: because of the query)."""

    hit: Hit
    reason: str
    because_of: str | None = None


@dataclass(frozen=True)
class Selection:
    """What a sampler chose, most relevant first, and what it passed over on the way."""

    hits: list[Hit]
    skipped: list[Skip] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A prompt with blanks, and the documents to ground the answer on, most relevant first."""

    prompt: Document
    context: Sequence[Hit] = ()


@dataclass(frozen=True)
class Output:
    """A filled prompt: its document, and the log-probability (nats) of what was filled in, with its token count.

    grounded_on: which of the request's documents the generator saw, by their places in its context; None: all of them.
    """

    document: Document
    log_probability: float
    tokens: int
    grounded_on: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Score:
    """How likely a document is under a prompt's context: log-probability (nats) and token count of each part."""

    log_probabilities: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def log_probability(self) -> float:
        return sum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """Per token, over all parts that were scored."""
        import math

        return math.exp(-self.log_probability / max(1, sum(self.tokens)))


@dataclass(frozen=True)
class Event:
    """A step of a streamed generation. The last one, kind "done", carries the outputs.

    detail, by kind: "tokens" has how many "tokens" were drawn of each sample, and the "texts" of each as far as they are
    written; "preview" the "images" that are being drawn. A pipeline adds "retrieved", with the "selection", before all
    others, and the "generation" to the last.
    """

    kind: Literal["retrieved", "tokens", "preview", "done"]
    outputs: list[Output] = field(default_factory=list)
    detail: Mapping[str, Any] = field(default_factory=dict)


class Retriever(ABC):
    """Turns documents and queries into unit vectors of one space (paper section 3.1)."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """Known without loading weights where that can be done."""

    @abstractmethod
    def encode_document(self, documents: Sequence[Document], *, batch_size: int | None = None) -> np.ndarray:
        """Unit vectors, float32 [n, dim]. Raises `ModalityError` for a document with nothing that can be encoded."""

    @abstractmethod
    def encode_query(
        self,
        queries: Sequence[Document],
        *,
        batch_size: int | None = None,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Unit vectors, float32 [n, dim]; blanks are passed over. dropout: share (0..1) of text tokens and image
        patches that is dropped, for training; needs `rng`, on which alone it depends, in any batch size."""


class MemoryStore(ABC):
    """Keeps documents with their vectors, and finds the nearest. A context manager: leaving it closes it."""

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the memory is bound to; None when it is not, or when it does not tell."""
        return None

    @abstractmethod
    def bind(self, encoder: Encoder) -> None:
        """Tie the memory to an encoder. The first call records it; another encoder raises `EncoderMismatch`."""

    @abstractmethod
    def add(
        self, documents: Iterable[Document], vectors: np.ndarray, *, on_duplicate: OnDuplicate = "error"
    ) -> list[str]:
        """Store documents with vectors (float32 [n, dim], unit norm) and return their ids, in order.

        A document whose id is stored already: "error" raises `DuplicateDocument` and stores nothing of the call,
        "skip" keeps the old one, "replace" the new one, which counts as added anew. The same rule holds within one call.
        Documents and metadata come back exactly, or are refused with a `RACM3Error`.
        """

    @abstractmethod
    def search(
        self,
        vectors: np.ndarray,
        *,
        k: int,
        where: Where | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """The k nearest of each query vector [n, dim], best first; fewer when the memory holds fewer.

        where: a filter on metadata ($eq $ne $in $nin $gt $gte $lt $lte $and $or $not). exclude: for each query, ids
        and content hashes (of documents or parts) to leave out. Both apply before the top-k.
        """

    @abstractmethod
    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id, in order; None where there is none."""

    @abstractmethod
    def items(self) -> Iterator[tuple[Document, np.ndarray]]:
        """All documents with their vectors, in the order in which they were added, streamed."""

    @abstractmethod
    def random(self, n: int, *, rng: np.random.Generator, where: Where | None = None) -> list[Hit]:
        """n documents drawn without replacement (score None): the random-documents baseline."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents; returns how many there were. Unknown ids are passed over."""

    @abstractmethod
    def __len__(self) -> int: ...

    def refresh(self) -> None:  # noqa: B027 (optional)
        """Take in what other processes have written since."""

    def flush(self) -> None:  # noqa: B027 (optional)
        """Bring caches on disk up to date. Documents are safe without it."""

    def close(self) -> None:  # noqa: B027 (optional)
        """Release files. Using the memory afterwards raises `MemoryStoreError`; closing it again does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Sampler(ABC):
    """Chooses which of the candidates the generator sees (paper section 3.2). Pure: no I/O, no model."""

    @abstractmethod
    def sample(self, query: Query, hits: Sequence[Hit], *, k: int, rng: np.random.Generator) -> Selection:
        """At most k of the hits, which come best first; the Hits that were given, not copies. `ConfigError` for k < 0."""


class Generator(ABC):
    """Fills the blanks of prompts, grounded on documents.

    options_type: a subclass of `Options`, where the generator has options of its own; whatever a pipeline is given is
    checked against it, and `generate` gets an instance of it.
    """

    accepts: frozenset[Modality]
    emits: frozenset[Modality]
    options_type: type[Options] | None = None  # None: `Options`; naming it here would import pydantic

    @property
    def fingerprint(self) -> str:
        """What identifies the weights, for the record of a generation."""
        return ""

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, options: Options) -> list[list[Output]]:
        """`options.n` filled documents for each request, in order; the rest of the prompt, metadata too, stays as it is.

        A `MaskedImage` is answered by a whole picture, of which the pipeline takes the region, a `MaskedText` by the
        whole text. Raises `GenerationError` for a prompt without a blank, `ModalityError` for what it neither takes nor
        makes.
        """

    @abstractmethod
    def score(self, requests: Sequence[Request], targets: Sequence[Document]) -> list[Score]:
        """How likely each target (the prompt with its blanks filled) is: log-probability of the parts that were blank.

        A prompt without blanks scores all parts of the target.
        """

    def stream(self, request: Request, *, options: Options) -> Iterator[Event]:
        """Events of one generation; by default a single final one."""
        yield Event("done", outputs=self.generate([request], options=options)[0])


__all__ = [
    "Blank", "Document", "Encoder", "Event", "Generator", "Hit", "Image", "MemoryStore", "Modality", "OnDuplicate",
    "Options", "Output", "Progress", "Query", "Request", "Retriever", "Sampler", "Score", "Selection", "Skip", "Text",
    "Where",
]  # fmt: skip


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Every plugin imports this file to say what it provides; pydantic, which few need, would take longer than that.
        if name == "Options":
            from .options import Options

            return Options
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
