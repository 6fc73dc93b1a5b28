"""The corridor: carries documents from room to room, and owns neither a model nor an index.

    pipeline = Pipeline.from_preset("emoji")
    pipeline.imagine("flag: Denmark, in Twemoji style").image

Data goes one way: prompt, documents that ground it, answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack, overload

from .adding import add_documents
from .answering import Asked, all_options, answers, check_defaults, fingerprints, given_options
from .classification import Classification, checked_labels, label_probabilities
from .crossing import calling, checked_encoder, checked_generator, next_event
from .document import Blank, Document
from .errors import ConfigError, GenerationError, ModalityError
from .generation import Generation
from .interfaces import (
    Event,
    Generator,
    Hit,
    MemoryStore,
    OnDuplicate,
    Output,
    Progress,
    Retriever,
    Sampler,
    Selection,
    Where,
)
from .options import Options
from .ranking import Rerank, check_rerank
from .registry import registry
from .retrieval import Clock, check_filter, encode_queries, nearest_hits, retrieve, without_blanks
from .streaming import in_thread
from .tasks import Asking, Context, Example, Picture, Tasks, as_context, as_document, as_examples, as_image

if TYPE_CHECKING:
    from .config import PipelineConfig
    from .near_duplicates import NearDuplicates

DEFAULT_K = 2


class Pipeline(Tasks):
    """A retriever, a memory, a sampler (default: `DiverseSampler`), and a generator (default: none, for search only).

    The memory is bound to the retriever's encoder: one that was filled by another raises `EncoderMismatch`.
    A context manager: leaving it closes the memory.

    options: of every answer, as far as a call gives no others; an `Options`, or a mapping with some of its fields, without n.

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
        *,
        options: Options | Mapping[str, Any] | None = None,
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
        self.options: Mapping[str, Any] = MappingProxyType(given_options(options))
        if generator is not None:
            checked_generator(generator)
            check_defaults(generator.options_type, self.options)
        with calling(retriever):
            encoder = retriever.encoder
        checked_encoder(retriever, encoder)
        with calling(memory):
            memory.bind(encoder)

    @classmethod
    def from_config(
        cls, source: str | Path | Mapping[str, Any] | PipelineConfig, **overrides: Mapping[str, Any] | Options | None
    ) -> Pipeline:
        """A pipeline from a TOML file, or from a mapping with the same tables. overrides: see `from_preset`."""
        from .config import PipelineConfig, load_config

        tables = {name: given_options(own) if isinstance(own, Options) else own for name, own in overrides.items()}
        config = source if isinstance(source, PipelineConfig) else load_config(source, overrides=tables)
        retriever, sampler = config.retriever.create(), config.sampler.create()
        generator = None if config.generator is None else config.generator.create()
        _ = retriever.encoder  # what cannot be found is found out before a new memory leaves its files behind
        memory = config.memory.create()
        try:
            return cls(retriever, memory, sampler, generator, options=config.options)
        except BaseException:
            memory.close()
            raise

    @classmethod
    def from_preset(cls, name: str, **overrides: Mapping[str, Any] | Options | None) -> Pipeline:
        """A pipeline that a plugin provides. overrides: settings by table, which win over the preset's; a table with
        another name replaces the preset's, None leaves it out. A memory of your own, to be filled:
        `from_preset("emoji", memory={"path": "./mine", "read_only": False})`."""
        return cls.from_config(registry().preset(name), **overrides)

    def add(
        self,
        documents: Document | Iterable[Document],
        *,
        batch_size: int = 64,
        on_duplicate: OnDuplicate = "error",
        near_duplicates: NearDuplicates | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """Encode documents and store them, batch by batch, and return their ids in order. Each batch that was stored
        stays stored, whatever happens to a later one.

        batch_size: of documents; fewer where their pictures are large. on_duplicate: what becomes of a document whose id is
        stored already; "skip" does not even encode it, unless the memory cannot read it any more. near_duplicates: leaves
        out pictures that are stored in another form already; their ids are not returned. progress: called with the number
        done, the number in all (0: unknown), and the last id.
        """
        return add_documents(
            self.retriever, self.memory, documents, batch_size=batch_size, on_duplicate=on_duplicate,
            near_duplicates=near_duplicates, progress=progress,
        )  # fmt: skip

    def search(self, query: str | Document | Picture, k: int = 10, where: Where | None = None) -> list[Hit]:
        """The k documents nearest to a text, a picture (a `Path` is a picture's), or a document with both; best first. Their
        `document` is read when it is first looked at, from the memory, which has to be open then."""
        _check_count("k", k, least=0)
        check_filter(where)
        shown = without_blanks(as_document(query))
        if shown is None:
            raise ModalityError("A search needs a text or a picture, and the query has neither.")
        if k == 0:
            return []
        return nearest_hits(self.memory, encode_queries(self.retriever, [shown]), k=k, where=where)[0]

    @overload
    def generate(self, prompts: Document, **asked: Unpack[Asking]) -> Generation: ...

    @overload
    def generate(self, prompts: Sequence[Document], **asked: Unpack[Asking]) -> list[Generation]: ...

    def generate(
        self,
        prompts: Document | Sequence[Document],
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation | list[Generation]:
        """Fill the blanks of a prompt, or of several at once, grounded on documents; answers come in order.

        k: how many documents to retrieve; by default 2, or none where a context is given. A memory with fewer gives all
        it has; an empty one answers without context, with a warning. where: a filter on their metadata. context:
        documents given by hand; they come before the retrieved ones, as the more relevant. n: samples. seed: drawn and
        recorded when None; it repeats the whole call. options: the rest, as the generator's own `options_type` (`Options`,
        or a subclass) or as a mapping with some of its fields. rerank: put the best sample first, by the "retriever"
        (pictures), by "perplexity" (texts), or by a function of the prompt and its outputs.
        """
        if not isinstance(prompts, Iterable | Document):
            raise GenerationError(
                f"A prompt is a Document, not {type(prompts).__name__}.", "imagine() takes a caption."
            )
        asked = [prompts] if isinstance(prompts, Document) else list(prompts)
        ready = self._ask(asked, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)
        generator = self._generator_for(asked)
        with Clock(ready.spent, "generate"), calling(generator):
            made = generator.generate(ready.requests, options=ready.options) if asked else []
        given = self._answers(ready, made)
        return given[0] if isinstance(prompts, Document) else given

    async def agenerate(
        self,
        prompts: Document | Sequence[Document],
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation | list[Generation]:
        """`generate` in a thread, so that an event loop goes on. Cancelled, the thread still ends its work: see `astream`."""
        return await asyncio.to_thread(
            self.generate, prompts, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank
        )  # fmt: skip

    def stream(
        self,
        prompt: Document,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Iterator[Event]:
        """One prompt's answer as it comes into being; the last event, "done", has it as `detail["generation"]`.

        "retrieved": `detail["selection"]`. "tokens": `detail["tokens"]`, how many were drawn of each sample, and
        `detail["texts"]`, what is written of each so far. "preview": `detail["images"]`, the picture that is being drawn,
        of each sample. The answer is the one that `generate` gives. Close the iterator to cancel: nothing stays behind.
        Arguments as of `generate`; bad ones raise at once.
        """
        self._check([prompt], k=k, where=where, options=options, n=n, seed=seed, rerank=rerank)
        return self._events(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)

    def _events(self, prompt: Document, **arguments: Any) -> Iterator[Event]:
        ready = self._ask([prompt], **arguments)
        generator = self._generator_for([prompt])
        yield Event("retrieved", detail={"selection": ready.selections[0]})
        outputs: list[Output] | None = None
        with calling(generator):
            events = generator.stream(ready.requests[0], options=ready.options)
        try:
            while outputs is None:
                # Only the work is timed, not what the consumer does between events.
                with Clock(ready.spent, "generate"):
                    event = next_event(generator, events)
                if event.kind == "done":
                    outputs = event.outputs
                else:
                    yield event
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
        answer = self._answers(ready, [outputs])[0]
        yield Event("done", outputs=answer.outputs, detail={"generation": answer})

    async def astream(
        self,
        prompt: Document,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> AsyncIterator[Event]:
        """`stream` for an event loop. Cancelling its task, or closing it, ends the work at the next step."""
        events = self.stream(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)
        async for event in in_thread(events):
            yield event

    def classify(
        self,
        image: Picture | str,
        labels: Sequence[str],
        *,
        examples: Iterable[Example] = (),
        k: int | None = None,
        where: Where | None = None,
        group_size: int = 2,
        seed: int = 0,
    ) -> Classification:
        """How likely each label is as the caption of a picture, among these labels (paper section 5).

        examples: documents of a picture and its label, or (picture, label) pairs; the first count as the most relevant.
        k: how many documents to retrieve besides; by default 2, or none where examples are given. group_size: documents
        that are shown at a time; with more, the probabilities of the groups are averaged.
        """
        chosen = checked_labels(labels)
        _check_count("group_size", group_size, least=1)
        shown = as_examples(examples)
        prompt = Document([Blank("text"), as_image(image)])
        ready = self._ask([prompt], k=k, where=where, context=shown or None, seed=seed)
        generator = self._generator_for([prompt])
        found = ready.selections[0]
        with Clock(ready.spent, "generate"):
            likely = label_probabilities(generator, prompt.parts[1], chosen, found.hits, group_size)  # type: ignore[arg-type]
        made_by = fingerprints(generator, self.retriever)
        return Classification(likely, found.hits, found.skipped, dict(ready.spent), made_by)

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

    def _check(
        self,
        prompts: Sequence[Document],
        *,
        k: int | None,
        where: Where | None,
        options: Options | Mapping[str, Any] | None,
        n: int,
        seed: int | None,
        rerank: Rerank | None,
    ) -> Options:
        """The options, once it is clear that the prompts can be answered."""
        generator = self._generator_for(prompts)
        if k is not None:
            _check_count("k", k, least=0)
        check_filter(where)
        check_rerank(rerank)
        return all_options(generator.options_type, options, defaults=self.options, n=n, seed=seed)

    def _ask(
        self, prompts: list[Document], *, k: int | None = None, where: Where | None = None,
        context: Context | None = None, n: int = 1, seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None, rerank: Rerank | None = None,
    ) -> Asked:  # fmt: skip
        """Prompts with what they are grounded on: documents given by hand, then retrieved ones."""
        settings = self._check(prompts, k=k, where=where, options=options, n=n, seed=seed, rerank=rerank)
        given = as_context(context)
        wanted = k if k is not None else DEFAULT_K if context is None else 0
        spent: dict[str, float] = {}
        known = {name for hit in given for name in (hit.id, hit.document.content_hash)}
        selections = retrieve(
            self.retriever, self.memory, self.sampler, prompts, k=wanted, where=where, seed=settings.seed, spent=spent,
            exclude=known,
        )  # fmt: skip
        if given:
            selections = [Selection([*given, *found.hits], found.skipped) for found in selections]
        return Asked(prompts, selections, settings, rerank, spent)

    def _answers(self, ready: Asked, made: list[list[Output]]) -> list[Generation]:
        """The answers; observers are told."""
        given = answers(ready, made, self._generator_for(ready.prompts), self.retriever)
        for answer in given:
            registry().notify_generated(answer)
        return given

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
                    name, kinds = type(self.generator).__name__, ", ".join(sorted(can)) or "nothing"
                    raise ModalityError(f"{name} does not {verb} {' or '.join(missing)}. It can {verb}: {kinds}.")
        return self.generator


def _check_count(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is a whole number, at least {least}, not {value!r}.")
