"""The index on disk: its segments, `vectors-<checksum>.rows`; what FAISS made of them, `index-<checksum>.faiss`; and
`index.json`, which names them and says how far they have come.

A snapshot only saves time. Every file is written to a temporary file, fsynced, renamed, its folder fsynced, and never
changed; whatever is missing, torn, stale or not ours is passed over, and the index is built from the journal. What came
since the last snapshot is written as a segment of its own, joined with those before it that are not much larger.

Opening maps all of them, and reads little: of large segments it checks the size and the numbers alone, and of FAISS's cells
and graphs everything but the codes of vectors. `damaged` reads them all.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..durable import publish
from ..errors import MemoryStoreError
from .approximate import ApproximateIndex
from .checksum import json_checksum, sha256_of
from .faiss_file import FaissFile, opened
from .faiss_file import mapped as mapped_faiss
from .faiss_file import write as write_faiss
from .index import VectorIndex
from .journal import State
from .segment import Part, Segment, mapped, width_of, write

FORMAT = 3
HEADER = "index.json"
CHECKED = 2**24  # bytes; a segment up to so large is read and compared with its checksum when it is opened
ABANDONED = 3600  # seconds after which a temporary file is nobody's

logger = logging.getLogger("racm3.memories")


def saved_state(folder: Path) -> State | None:
    """How far the snapshot of a folder has come; None when there is none that can be read."""
    header = _header(folder)
    return None if header is None else State(header["last_seq"], header["generation"])


def saved_recall(folder: Path) -> float | None:
    """What share of the nearest documents the index of a snapshot was measured to find; None: all, or not measured."""
    header = _header(folder)
    return None if header is None or header["index"] is None else header["index"].get("recall")


def load(folder: Path, dim: int) -> VectorIndex | None:
    """The index of a folder's snapshot; None where there is none, or none that can be used, which is said."""
    header = _header(folder)
    while header is not None or (folder / HEADER).exists():
        try:
            if header is None or header["dim"] != dim:
                raise ValueError(f"{HEADER} is damaged, or of another version")
            return _loaded(folder, header)
        except Exception as error:
            before, header = header, _header(folder)
            if header == before:  # otherwise a writer has put another in its place since
                logger.warning("The snapshot in %s is passed over, and the index built anew: %s", folder, error)
                return None
    return None


def _loaded(folder: Path, header: dict[str, Any]) -> VectorIndex:
    segments, last, made = [], 0, header["index"]
    for entry in header["segments"]:
        path = folder / Path(entry["file"]).name
        segments.append(mapped(path, entry["rows"], header["dim"], entry["width"], entry["sha256"]))
        first, before, last = int(segments[-1].seqs[0]), last, int(segments[-1].seqs[-1])
        if not before < first <= last <= header["last_seq"]:
            raise ValueError("its numbers do not ascend")
        if path.stat().st_size <= CHECKED:
            _check(path, entry["sha256"])
    index = VectorIndex(header["dim"], segments)
    index.last_seq, index.generation = header["last_seq"], header["generation"]
    index.remove(np.array(header["removed"], dtype=np.int64))
    if made is None:
        return index
    file = opened(folder, made)
    if file.index.ntotal > len(index.seqs) or file.index.d != index.dim:
        raise ValueError(f"{file.path.name} is of other vectors")
    return ApproximateIndex(made["kind"], index, file.index, effort=made["effort"], recall=made["recall"], file=file)


def damaged(folder: Path) -> bool:
    """Whether a folder has a snapshot that is not what was written. One of an earlier format is only passed over."""
    header = _header(folder)
    while _is_damaged(folder, header):
        before, header = header, _header(folder)
        if header == before:  # otherwise a writer has put another in its place since
            return True
    return False


def _is_damaged(folder: Path, header: dict[str, Any] | None) -> bool:
    if not (folder / HEADER).exists():
        return False
    try:
        if header is None:
            found = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            return found["format"] not in range(1, FORMAT) or found["checksum"] != json_checksum(found)
        return any(sha256_of(path) != sha256 for path, sha256 in _files(folder, header))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return True


def compacted(index: VectorIndex, folder: Path) -> VectorIndex:
    """An exact index of the same documents without tombstones. Its vectors are written; the snapshot does not name them yet.
    Raises `MemoryStoreError`."""
    with _said(folder):
        return index.over([_stored(index.parts, folder)] if len(index.live) else [])


def save(index: VectorIndex, folder: Path, old: Iterable[Path | None] = ()) -> None:
    """Write an index, which has its vectors mapped from then on. old: files that it was made of and does not need any more.
    Raises `MemoryStoreError` when that fails; the snapshot before it then stands."""
    with _said(folder):
        had = {*old, *(segment.path for segment in index.segments)}
        spill(index, folder, join=True)
        header: dict[str, Any] = {
            "format": FORMAT,
            "last_seq": index.last_seq,
            "generation": index.generation,
            "dim": index.dim,
            "segments": [
                {
                    "file": segment.path.name,
                    "rows": len(segment),
                    "width": segment.names.shape[1],
                    "sha256": segment.sha256,
                }
                for segment in index.segments
                if segment.path is not None
            ],
            "removed": np.setdiff1d(index.seqs, index.live, assume_unique=True).tolist(),
            "index": None,
        }
        if isinstance(index, ApproximateIndex):
            file = _kept(index, folder)
            header["index"] = {"kind": index.kind, "effort": index.effort, "recall": index.recall, **file.entry}
        header["checksum"] = json_checksum(header)  # a number that has changed would bring documents in twice
        before, part = _header(folder), _part(folder)
        if before is not None:
            had |= {path for path, _ in _files(folder, before)}
        try:
            part.write_text(json.dumps(header, indent=1), encoding="utf-8")
            publish(part, folder / HEADER)
        finally:
            part.unlink(missing_ok=True)
        _clean(folder, {path for path, _ in _files(folder, header)}, had)


def prepare(index: VectorIndex, folder: Path) -> None:
    """Write what is large of an index that `save` is to write: it then has little left to do. The snapshot does not name it
    yet. Raises `MemoryStoreError`."""
    spill(index, folder, join=True)
    if isinstance(index, ApproximateIndex):
        with _said(folder):
            _kept(index, folder)


def spill(index: VectorIndex, folder: Path, *, join: bool = False) -> None:
    """Write what an index holds in memory, and map it; the snapshot does not name it yet. Raises `MemoryStoreError`.

    join: write those segments anew with it that are not much larger, so that there are few of them."""
    segments = index.segments
    first, rows = len(segments), 0
    while first and (segments[first - 1].path is None or (join and len(segments[first - 1]) < 2 * rows)):
        first -= 1
        rows += len(segments[first])
    gone = [segment for segment in segments[:first] if segment.path is not None and not segment.path.exists()]
    with _said(folder):
        if rows:
            segments[first:] = [_stored([(segment, None) for segment in segments[first:]], folder)]
        for segment in gone:  # another process has cleaned it away
            segments[segments.index(segment)] = _stored([(segment, None)], folder)


def _stored(parts: list[Part], folder: Path) -> Segment:
    """Parts of segments as one on disk."""
    path, sha256 = _published(folder, "vectors-{}.rows", lambda file: write(parts, file))
    rows = sum(len(segment) if kept is None else int(np.count_nonzero(kept)) for segment, kept in parts)
    return mapped(path, rows, parts[0][0].vectors.shape[1], width_of(parts), sha256)


def _kept(index: ApproximateIndex, folder: Path) -> FaissFile:
    """The file of FAISS's index, which is written anew unless it is there and lacks a few documents at most."""
    if index.file is None or index.file.path.parent != folder or not index.file.path.exists():
        index.take_in()
        made = index.faiss
        path, sha256 = _published(folder, "index-{}.faiss", lambda file: write_faiss(made, file))
        index.file = mapped_faiss(made, path, sha256)
        index.faiss = index.file.index
    return index.file


def _published(folder: Path, name: str, write: Callable[[BinaryIO], str]) -> tuple[Path, str]:
    """Write a file whose name holds its checksum: another name for other content, so that the old one stands until then."""
    part = _part(folder)
    try:
        with part.open("wb") as file:
            sha256 = write(file)
        path = folder / name.format(sha256[:16])
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path, sha256


def _part(folder: Path) -> Path:
    return folder / f"index-{uuid.uuid4().hex}.part"


def _clean(folder: Path, named: set[Path], old: set[Path | None]) -> None:
    """Remove the files of the snapshot and the index before this one that it does not name. Others may belong to a process that
    is writing them now; those of one that was killed are removed when they are old."""
    for path in (*folder.glob("index-*"), *folder.glob("vectors-*")):
        with suppress(FileNotFoundError):  # another process cleans, too
            if path not in named and (path in old or time.time() - path.stat().st_mtime > ABANDONED):
                path.unlink()


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


def _header(folder: Path) -> dict[str, Any] | None:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header["format"] != FORMAT or header["checksum"] != json_checksum(header):
            return None
        numbers = [header[name] for name in ("last_seq", "generation", "dim")]
        numbers += [entry[name] for entry in header["segments"] for name in ("rows", "width")] + header["removed"]
        _files(folder, header)
        return header if all(type(number) is int for number in numbers) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _files(folder: Path, header: dict[str, Any]) -> list[tuple[Path, str]]:
    """The files that a header names, none of them elsewhere than in its folder, and their checksums."""
    entries = [*header["segments"], *([header["index"]] if header["index"] is not None else [])]
    return [(folder / Path(entry["file"]).name, entry["sha256"]) for entry in entries]


def _check(path: Path, sha256: str) -> None:
    if sha256_of(path) != sha256:
        raise ValueError(f"{path.name} does not match its checksum")
