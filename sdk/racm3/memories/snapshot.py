"""The index on disk: `index-<checksum>.faiss`, and `index.json` that names it and says what is in it.

A snapshot only saves time. It is written to a temporary file, fsynced, renamed, and its folder fsynced; whatever is
missing, torn, stale or not ours is passed over, and the index is built from the journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MemoryStoreError
from .approximate import ApproximateIndex, Read
from .durable import publish
from .index import VectorIndex
from .journal import State

if TYPE_CHECKING:
    import faiss

FORMAT = 1
HEADER = "index.json"
ABANDONED = 3600  # seconds after which a temporary file is nobody's

logger = logging.getLogger("racm3.memories")


def saved_state(folder: Path) -> State | None:
    """How far the snapshot of a folder has come; None when there is none that can be read."""
    header = _header(folder)
    return None if header is None else State(header["last_seq"], header["generation"])


def load(folder: Path, dim: int, read: Read) -> VectorIndex | None:
    """The index of a folder's snapshot, or None. read: gives the database's vectors."""
    import faiss

    header = _header(folder)
    if header is not None and not (folder / header["file"]).exists():
        header = _header(folder)  # a writer has put another in its place since
    if header is None or header["dim"] != dim:
        return None
    path = folder / header["file"]
    try:
        # faiss trusts the sizes that it reads, so a torn file must not reach it.
        if _sha256(path) != header["sha256"]:
            raise ValueError("it does not match its checksum")
        # Read, not mapped: rows are added to it, and adding to a mapped index aborts the process.
        found = faiss.read_index(str(path))
        if not isinstance(found, faiss.IndexIDMap):
            raise ValueError(f"it is of kind {type(found).__name__}")
        kind = header.get("index", "exact")
        index = VectorIndex(dim, found) if kind == "exact" else ApproximateIndex(kind, dim, read, found)
    except Exception as error:
        logger.warning("The snapshot %s is passed over, and the index built anew: %s", path, error)
        return None
    index.last_seq = header["last_seq"]
    # Which of its rows are tombstones is not saved: asked to catch up from before everything, it finds out.
    index.generation = header["generation"] if kind == "exact" else -1
    return index


def damaged(folder: Path) -> bool:
    """Whether a folder has a snapshot that is not what was written."""
    if not (folder / HEADER).exists():
        return False
    header = _header(folder)
    try:
        return header is None or _sha256(folder / header["file"]) != header.get("sha256")
    except OSError:
        return True


def save(index: VectorIndex, folder: Path) -> None:
    """Write an index; an exact one has no tombstones. Raises `MemoryStoreError` when that fails; the one before then stands."""
    assert not index.dead or index.kind != "exact"
    part = folder / f"index-{uuid.uuid4().hex}.faiss.part"
    with _said(folder):
        try:
            _save(index, folder, part)
        finally:
            part.unlink(missing_ok=True)


def _save(index: VectorIndex, folder: Path, part: Path) -> None:
    sha256 = _write(index.index, part)
    target = folder / f"index-{sha256[:16]}.faiss"  # another name for other content: the old one stands until then
    header = {
        "format": FORMAT,
        "file": target.name,
        "last_seq": index.last_seq,
        "generation": index.generation,
        "dim": index.dim,
        "index": index.kind,
        "sha256": sha256,
    }
    header["checksum"] = _checksum(header)
    publish(part, target)
    part.write_text(json.dumps(header, indent=1), encoding="utf-8")
    publish(part, folder / HEADER)
    for old in folder.glob("index-*.faiss*"):
        # A part may belong to another process that is writing it now, or to one that was killed.
        if old != target and (old.suffix != ".part" or time.time() - old.stat().st_mtime > ABANDONED):
            old.unlink(missing_ok=True)


def _write(index: faiss.Index, path: Path) -> str:
    """Write an index, and return its SHA-256. Not by faiss: it takes no notice when closing a file fails, as on a full
    disk, and a torn file would get a checksum of its own."""
    import faiss

    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        faiss.write_index(index, faiss.PyCallbackIOWriter(write))  # type: ignore[attr-defined]
    return digest.hexdigest()


def discard(folder: Path) -> None:
    """Remove the snapshot of a folder."""
    with _said(folder):
        (folder / HEADER).unlink(missing_ok=True)


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MemoryStoreError(
            f"The index cannot be saved in {folder}: {error.strerror or error}.",
            "No document is lost: it is rebuilt when opened.",
        ) from error


def _header(folder: Path) -> dict | None:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        numbers = [header[name] for name in ("format", "last_seq", "generation", "dim")]
        ours = header["format"] == FORMAT and all(type(number) is int for number in numbers)
        ours = ours and header["checksum"] == _checksum(header)
        return header if ours and Path(header["file"]).name == header["file"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(header: dict) -> str:
    """A number that has changed, such as `last_seq`, would bring documents into the index twice."""
    values = {name: value for name, value in header.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
