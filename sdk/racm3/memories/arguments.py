"""What every memory checks of the arguments that it is given; of vectors, see `racm3.memories.vectors`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import get_args

import numpy as np

from ..document import Document
from ..errors import InvalidDocument, MemoryStoreError, nearest
from ..interfaces import Encoder, OnDuplicate

WIDEST = 2**20  # numbers in a vector


def check_policy(on_duplicate: str) -> None:
    """Raise `MemoryStoreError` unless it is one of the three duplicate policies."""
    if on_duplicate not in get_args(OnDuplicate):
        raise MemoryStoreError(
            f"No duplicate policy {on_duplicate!r}.",
            f"{nearest(str(on_duplicate), get_args(OnDuplicate))} Use 'error', 'skip' or 'replace'.".strip(),
        )


def check_count(name: str, value: object, what: str) -> None:
    """Raise `MemoryStoreError` unless a number of things (`what`) is whole and not negative."""
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise MemoryStoreError(f"{name} is the number of {what}, 0 or more, not {value!r}.")


def check_encoder(encoder: object) -> None:
    """Raise `MemoryStoreError` unless a memory can be bound to it, and know it again."""
    if not isinstance(encoder, Encoder):
        raise MemoryStoreError(
            f"A memory is bound to an Encoder, not to {type(encoder).__name__}.", "retriever.encoder"
        )
    name, dim = encoder.fingerprint, encoder.dim
    if not isinstance(name, str) or not name or "\ud800" <= max(name) <= "\udfff":
        raise MemoryStoreError(f"The fingerprint of an encoder is a non-empty str, not {name!r}.")
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool) or not 0 < dim <= WIDEST:
        raise MemoryStoreError(f"The width of an encoder is a whole number from 1 to {WIDEST:,}, not {dim!r}.")


def with_vectors(documents: Iterable[Document], rows: np.ndarray) -> Iterator[tuple[Document, np.ndarray]]:
    """Documents with their vectors, read one by one.

    Raises `InvalidDocument` for what is no document or a prompt, `MemoryStoreError` if there are not as many as rows.
    """
    if not isinstance(documents, Iterable):
        raise InvalidDocument(f"A memory stores a list of Documents, not {type(documents).__name__}.")
    number = 0
    for document in documents:
        if not isinstance(document, Document):
            raise InvalidDocument(f"A memory stores Documents, not {type(document).__name__}.")
        if number == len(rows):
            raise MemoryStoreError(f"There are more documents than vectors ({len(rows)}).", "Give one for each.")
        if document.blanks:
            raise InvalidDocument(f"Document {document.id!r} has blanks: it is a prompt.", "Fill it before storing it.")
        yield document, rows[number]
        number += 1
    if number < len(rows):
        raise MemoryStoreError(f"There are {len(rows)} vectors for {number} documents.", "Give one for each.")


def exclusions(exclude: Sequence[Collection[str]] | None, queries: int) -> list[set[str]]:
    """Ids and content hashes to leave out, for each query."""
    if exclude is None:
        return [set() for _ in range(queries)]
    if not isinstance(exclude, Sequence) or isinstance(exclude, str) or not all(map(_are_names, exclude)):
        raise MemoryStoreError("exclude takes a collection of names for each query.", "Give [{'id'}].")
    if len(exclude) != queries:
        raise MemoryStoreError(f"There are {len(exclude)} exclusions for {queries} queries.", "Give one for each.")
    return [set(names) for names in exclude]


def _are_names(given: object) -> bool:
    return isinstance(given, Collection) and not isinstance(given, str) and all(isinstance(name, str) for name in given)


def id_list(ids: Sequence[str]) -> list[str]:
    """Ids as a list; a single str is a mistake, not a sequence of letters."""
    if isinstance(ids, str):
        raise MemoryStoreError(f"Ids come as a list, not as the str {ids!r}.", f"Give [{ids!r}].")
    if not isinstance(ids, Iterable):
        raise MemoryStoreError(f"Ids come as a list, not as {type(ids).__name__}.")
    listed = list(ids)
    for id in listed:
        if not isinstance(id, str):
            raise MemoryStoreError(f"An id is a str, not {id!r}.")
    return listed
