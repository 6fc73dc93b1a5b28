"""The corridor: carries documents from room to room, and owns neither a model nor an index.

    pipeline = Pipeline.from_preset("emoji")
    pipeline.imagine("flag: Denmark, in Twemoji style").image

Data goes one way: prompt, documents that ground it, answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from .crossing import checked_documents, checked_encoder, checked_modalities, checked_outputs, checked_vectors
from .document import Blank, Document, Image, Text
from .errors import ConfigError, GenerationError, InvalidDocument, ModalityError
from .generation import Generation
from .interfaces import (
    Generator,
    Hit,
    MemoryStore,
    OnDuplicate,
    Output,
    Progress,
    Request,
    Retriever,
    Sampler,
    Selection,
    Skip,
    Where,
)
from .options import Options
from .registry import registry
from .retrieval import Clock, encode_queries, nearest_hits, retrieve, without_blanks
from .settings import validate

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from .config import PipelineConfig

Picture: TypeAlias = "Image | PIL.Image.Image | np.ndarray | Path"
Context: TypeAlias = "Iterable[Hit | Document | Image | str]"


class Pipeline:
    """A retriever, a memory, a sampler (default: `DiverseSampler`), and a generator (default: none, for search only).

    The memory is bound to the retriever's encoder: one that was filled by another raises `EncoderMismatch`.
    A context manager: leaving it closes the memory.

    >>> from racm3 import Document, Pipeline
    >>> from racm3.memories.faiss import FaissMemory
    >>> from racm3.testing import HashingRetriever, PaintingGenerator
    >>> with Pipeline(HashingRetriever(), FaissMemory(), generator=PaintingGenerator()) as pipeline:
    ...     ids = pipeline.add([Document("a red kite", id="kite"), Document("a grey whale", id="whale")])
    ...     best = pipeline.search("whale", k=1)[0].id
    ...     answer = pipeline.imagine("a kite", k=1, seed=7)
    >>> best, answer.image.size, answer.hits[0].id
    ('whale', (32, 32), 'kite')
    """

    def __init__(
        self,
        retriever: Retriever,
        memory: MemoryStore,
        sampler: Sampler | None = None,
        generator: Generator | None = None,
    ) -> None:
        if sampler is None:
            from .samplers.diverse import DiverseSampler

            sampler = DiverseSampler()
        for part, interface in (
            (retriever, Retriever),
            (memory, MemoryStore),
            (sampler, Sampler),
            (generator, Generator),
        ):
            if part is not None and not isinstance(part, interface):
                raise ConfigError(
                    f"A pipeline takes a {interface.__name__}, not {type(part).__name__}.",
                    "Pipeline.from_config builds one from names and settings.",
                )
        self.retriever, self.memory, self.sampler, self.generator = retriever, memory, sampler, generator
        if generator is not None:
            checked_modalities(generator)
        memory.bind(checked_encoder(retriever, retriever.encoder))

    @classmethod
    def from_config(
        cls, source: str | Path | Mapping[str, Any] | PipelineConfig, **overrides: Mapping[str, Any] | None
    ) -> Pipeline:
        """A pipeline from a TOML file, or from a mapping with the same tables. overrides: see `from_preset`."""
        from .config import PipelineConfig, load_config

        config = source if isinstance(source, PipelineConfig) else load_config(source, overrides=overrides)
        retriever = config.retriever.create()
        memory = config.memory.create()
        try:
            generator = None if config.generator is None else config.generator.create()
            return cls(retriever, memory, config.sampler.create(), generator)
        except BaseException:
            memory.close()
            raise

    @classmethod
    def from_preset(cls, name: str, **overrides: Mapping[str, Any] | None) -> Pipeline:
        """A pipeline that a plugin provides. overrides: settings by table, which win over the preset's; a table with
        another name replaces the preset's, None leaves it out: `from_preset("emoji", memory={"path": "./mine"})`."""
        return cls.from_config(registry().preset(name), **overrides)

    def add(
        self,
        documents: Iterable[Document],
        *,
        batch_size: int = 64,
        on_duplicate: OnDuplicate = "error",
        progress: Progress | None = None,
    ) -> list[str]:
        """Encode documents and store them, batch by batch, and return their ids in order. Each batch that was stored
        stays stored, whatever happens to a later one.

        on_duplicate: what becomes of a document whose id is stored already; "skip" does not even encode it.
        progress: called with the number done, the number in all (0: unknown), and the last id.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {batch_size}.")
        total = len(documents) if isinstance(documents, Sized) else 0
        ids: list[str] = []
        source = iter(documents)
        while batch := list(islice(source, batch_size)):
            for document in batch:
                if not isinstance(document, Document):
                    raise InvalidDocument(
                        f"A memory holds documents, not {type(document).__name__}.", "Document([...])"
                    )
                if document.blanks:
                    raise InvalidDocument(f"{document!r} has blanks: a memory holds whole documents.")
            ids += [document.id for document in batch]
            if on_duplicate == "skip":
                asked = [document.id for document in batch]
                stored = checked_documents(self.memory, asked, self.memory.get(asked))
                batch = [document for document, old in zip(batch, stored, strict=True) if old is None]
            if batch:
                vectors = self.retriever.encode_document(batch, batch_size=batch_size)
                vectors = checked_vectors(self.retriever, vectors, count=len(batch), dim=self.retriever.encoder.dim)
                self.memory.add(batch, vectors, on_duplicate=on_duplicate)
            if progress is not None:
                progress(len(ids), total, ids[-1])
        return ids

    def search(self, query: str | Document | Picture, k: int = 10, where: Where | None = None) -> list[Hit]:
        """The k documents nearest to a text, a picture (a `Path` is a picture's), or a document with both; best first."""
        _check_count("k", k, least=0)
        shown = without_blanks(_as_document(query))
        if shown is None:
            raise ModalityError("A search needs a text or a picture, and the query has neither.")
        if k == 0:
            return []
        return nearest_hits(self.memory, encode_queries(self.retriever, [shown]), k=k, where=where)[0]

    @overload
    def generate(
        self,
        prompts: Document,
        *,
        k: int = 2,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Document],
        *,
        k: int = 2,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompts: Document | Sequence[Document],
        *,
        k: int = 2,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> Generation | list[Generation]:
        """Fill the blanks of a prompt, or of several at once, grounded on documents from the memory.

        k: how many documents (0: none). where: a filter on their metadata. context: documents given by hand instead of
        retrieved ones. n: samples. seed: drawn and recorded when None; it repeats the whole call. options: the rest.
        """
        single = isinstance(prompts, Document)
        asked = [prompts] if isinstance(prompts, Document) else list(prompts)
        generator = self._generator_for(asked)
        _check_count("k", k, least=0)
        settings = _options(options, n=n, seed=seed)
        spent: dict[str, float] = {}
        if context is None:
            selections = retrieve(
                self.retriever, self.memory, self.sampler, asked, k=k, where=where, seed=settings.seed, spent=spent
            )
        else:
            given = [item if isinstance(item, Hit) else Hit(_as_document(item)) for item in context]
            selections = [Selection(given)] * len(asked)
        requests = [Request(prompt, tuple(chosen.hits)) for prompt, chosen in zip(asked, selections, strict=True)]
        with Clock(spent, "generate"):
            made = generator.generate(requests, options=settings) if requests else []
        outputs = checked_outputs(generator, made, asked, n=settings.n)
        seconds = (
            {stage: spent.get(stage, 0.0) / len(asked) for stage in ("retrieve", "sample", "generate")} if asked else {}
        )
        fingerprints = {"retriever": self.retriever.encoder.fingerprint, "generator": generator.fingerprint}
        answers = [
            Generation(prompt, filled, seen.hits, seen.skipped, settings.seed, seconds, fingerprints)
            for prompt, filled, seen in zip(asked, outputs, map(_seen, selections, outputs), strict=True)
        ]
        for answer in answers:
            registry().notify_generated(answer)
        return answers[0] if single else answers

    def imagine(
        self,
        caption: str,
        *,
        k: int = 2,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> Generation:
        """Draw a picture of a caption. Arguments as of `generate`."""
        prompt = Document([caption, Blank("image")])
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options)

    def caption(
        self,
        image: Picture | str,
        *,
        k: int = 2,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> Generation:
        """Describe a picture (a str is a path) in words. Arguments as of `generate`."""
        prompt = Document([Blank("text"), image if isinstance(image, Image) else Image(image)])
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options)

    def close(self) -> None:
        """Release the memory's files."""
        self.memory.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        parts = (self.retriever, self.memory, self.sampler, self.generator)
        return f"Pipeline({', '.join(type(part).__name__ for part in parts if part is not None)})"

    def _generator_for(self, prompts: Sequence[Document]) -> Generator:
        """The generator, once it is clear that it can answer."""
        if self.generator is None:
            raise GenerationError(
                "This pipeline has no generator.", "Give one: Pipeline(..., generator=...), or [generator]."
            )
        for prompt in prompts:
            if not isinstance(prompt, Document):
                raise GenerationError(
                    f"A prompt is a Document, not {type(prompt).__name__}.", "imagine() takes a caption."
                )
            if not prompt.blanks:
                raise GenerationError(f"{prompt!r} has nothing to fill in.", "Add Blank('image') or Blank('text').")
            for asked, can, verb in (
                ({blank.modality for blank in prompt.blanks}, self.generator.emits, "make"),
                (prompt.modalities, self.generator.accepts, "take"),
            ):
                if missing := sorted(asked - can):
                    name = type(self.generator).__name__
                    raise ModalityError(
                        f"{name} does not {verb} {missing[0]}. It can {verb}: {', '.join(sorted(can))}."
                    )
        return self.generator


def _as_document(given: str | Document | Picture) -> Document:
    if isinstance(given, Document):
        return given
    return Document(given if isinstance(given, (str, Image, Text, Blank)) else Image(given))


def _options(options: Options | Mapping[str, Any] | None, *, n: int, seed: int | None) -> Options:
    """All options in one: `n` and `seed` are short for the fields of the same name."""
    kind = type(options) if isinstance(options, Options) else Options
    given = options.model_dump(exclude_unset=True) if isinstance(options, Options) else dict(options or {})
    if n != 1 or "n" not in given:
        given["n"] = n
    if seed is not None or "seed" not in given:
        # 32 bits: every random generator takes them, and one can type them.
        given["seed"] = secrets.randbits(32) if seed is None else seed
    return kind(**validate(kind, given, "A generation"))


def _seen(selection: Selection, outputs: Sequence[Output]) -> Selection:
    """The selection without the documents that did not fit the generator's context: nothing was grounded on those."""
    seen = outputs[0].grounded_on
    if seen is None or seen >= len(selection.hits):
        return selection
    cut = [Skip(hit, "no room in the generator's context") for hit in selection.hits[seen:]]
    return Selection(selection.hits[:seen], [*selection.skipped, *cut])


def _check_count(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is a whole number, at least {least}, not {value!r}.")
