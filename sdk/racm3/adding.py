"""Documents into the memory: in batches that fit, without those that are there already.

Each batch that was stored stays stored, so that what is interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress

from .crossing import calling, checked_documents
from .document import Document
from .errors import ConfigError, InvalidDocument, InvalidImage, MemoryCorrupt
from .interfaces import MemoryStore, OnDuplicate, Progress, Retriever
from .near_duplicates import NearDuplicates
from .retrieval import encode_documents

BATCH_PIXELS = 2**26  # of a batch's pictures, which are decoded at once, in three bytes each


def add_documents(
    retriever: Retriever,
    memory: MemoryStore,
    documents: Document | Iterable[Document],
    *,
    batch_size: int,
    on_duplicate: OnDuplicate,
    near_duplicates: NearDuplicates | None,
    progress: Progress | None,
) -> list[str]:
    """See `racm3.Pipeline.add`."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, not {batch_size}.")
    if isinstance(documents, Document):
        documents = [documents]
    if not isinstance(documents, Iterable):
        raise InvalidDocument(
            f"A memory holds documents, not {type(documents).__name__}.", "Document([...]), or read_folder(path)."
        )
    total, done = len(documents) if isinstance(documents, Sized) else 0, 0
    ids: list[str] = []
    for batch in _batches(documents, batch_size):
        asked = [document.id for document in batch]
        done, last = done + len(asked), asked[-1]
        policy = on_duplicate
        if on_duplicate == "skip":
            batch, damaged = _without_stored(batch, memory)
            policy = "replace" if damaged else policy
        if batch:
            vectors = encode_documents(retriever, batch, batch_size=batch_size)
            if near_duplicates is not None:
                new = near_duplicates.new(batch, vectors, memory)
                repeated = {document.id for document in batch} - {batch[place].id for place in new}
                asked = [id for id in asked if id not in repeated]
                batch, vectors = [batch[place] for place in new], vectors[new]
        if batch:
            with calling(memory):
                memory.add(batch, vectors, on_duplicate=policy)
        ids += asked
        if progress is not None:
            progress(done, total, last)
        del batch  # or it would stay while the next one is read
    return ids


def _without_stored(batch: list[Document], memory: MemoryStore) -> tuple[list[Document], bool]:
    """The documents that the memory lacks, or cannot read any more, as when the file of a picture was moved; and whether
    there are any of these, which are to be replaced."""
    asked = [document.id for document in batch]
    try:
        with calling(memory):
            found = memory.get(asked)
    except MemoryCorrupt:
        if len(batch) == 1:
            return batch, True
        middle = len(batch) // 2
        (first, one), (second, other) = (_without_stored(half, memory) for half in (batch[:middle], batch[middle:]))
        return first + second, one or other
    stored = checked_documents(memory, asked, found)
    return [document for document, old in zip(batch, stored, strict=True) if old is None], False


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """The documents, checked, so many at a time; fewer where their pictures are large."""
    batch: list[Document] = []
    pixels = 0
    for document in documents:
        if not isinstance(document, Document):
            raise InvalidDocument(f"A memory holds documents, not {type(document).__name__}.", "Document([...])")
        if document.blanks:
            raise InvalidDocument(f"{document!r} has blanks: a memory holds whole documents.")
        batch.append(document)
        with suppress(InvalidImage):  # what is wrong with it, the retriever says, if it is asked
            pixels += sum(image.pixels for image in document.images)
        del document
        if len(batch) == size or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
