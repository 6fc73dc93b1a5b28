"""An index of FAISS in a file: written with what it takes to check it, and mapped, so that opening it takes no time.

FAISS trusts what it reads, and what is torn can end the process. At the end of some files lies what it cannot be led astray by:
the codes of vectors, in plain inverted files with their labels. So opening checks what comes before it, of other kinds all, by
CRC-32: of a large graph that takes a third of the time of SHA-256, which says of whole files whether they are as written.
"""

from __future__ import annotations

import hashlib
import weakref
import zlib
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import MemoryCorrupt
from . import page_cache
from .checksum import sha256_of

if TYPE_CHECKING:
    import faiss

LABEL = 8  # bytes
CHUNK = 2**18  # bytes read at a time, which stay in the processor's cache meanwhile


class FaissFile:
    """A file that is mapped. size: bytes; head: how many of them are checked when it is opened. It stays readable when
    another process removes it. Raises `ValueError` when it is not what was written, `OSError`."""

    def __init__(self, path: Path, *, size: int, sha256: str, head: int, head_crc32: int) -> None:
        import faiss

        self.path, self.size, self.sha256 = path, size, sha256
        self._head = {"head": head, "head_crc32": head_crc32}
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        if path.stat().st_size != size or not 0 < head <= size:
            raise ValueError(f"{path.name} has not the size that it was written with")
        if _crc32(self._file, head) != head_crc32:
            raise ValueError(f"{path.name} does not match its checksum")
        self.index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._unread: dict[int, tuple[int, int]] = {}  # where the cells lie that nobody has asked for: start and length
        has_cells = head < size and hasattr(self.index, "invlists")
        if has_cells and not page_cache.is_cached(self._file.fileno(), head, size):
            self._unread = _cells(self.index, head)

    def search(self, queries: np.ndarray, k: int, *, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """As the index itself; but cells that nobody has asked for are read from the disk side by side, where it would wait
        for one page after the other."""
        if not self._unread:
            return self.index.search(queries, k, params=params)
        import faiss

        near, cells = self.index.quantizer.search(queries, min((params or self.index).nprobe, self.index.nlist))
        for cell in self._unread.keys() & set(cells.ravel().tolist()):
            page_cache.want(self._file.fileno(), *self._unread.pop(cell))
        scores, labels = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        arrays = (faiss.swig_ptr(array) for array in (cells, near, scores, labels))  # type: ignore[attr-defined]
        # The cells need not be looked for again. Of the function that has no suffix the wrapper takes no parameters.
        self.index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *arrays, False, params)  # type: ignore[attr-defined]
        return scores, labels

    @property
    def entry(self) -> dict[str, Any]:
        """What `opened` takes."""
        return {"file": self.path.name, "bytes": self.size, "sha256": self.sha256, **self._head}

    def whole(self) -> faiss.Index:
        """The index in memory, where it can be added to: FAISS ends the process when something is added to a mapped one.
        Raises `MemoryCorrupt` when the file has changed."""
        import faiss

        try:
            self._file.seek(0)
            if hashlib.file_digest(self._file, "sha256").hexdigest() != self.sha256:
                raise ValueError("it does not match its checksum")
            self._file.seek(0)
            return faiss.read_index(faiss.PyCallbackIOReader(self._file.read, CHUNK))  # type: ignore[attr-defined]
        except (OSError, ValueError) as error:
            raise MemoryCorrupt(
                f"The index file {self.path} cannot be read: {error}.", "Compact the memory: its index is built anew."
            ) from error


def opened(folder: Path, entry: dict[str, Any]) -> FaissFile:
    """The file that a header names."""
    path, check = folder / Path(entry["file"]).name, entry.get("head_crc32")
    if check is None:  # of an earlier version, which had another checksum of the head
        if sha256_of(path) != entry["sha256"]:
            raise ValueError(f"{path.name} does not match its checksum")
        with path.open("rb") as file:
            check = _crc32(file, entry["head"])
    return FaissFile(path, size=entry["bytes"], sha256=entry["sha256"], head=entry["head"], head_crc32=check)


def write(index: faiss.Index, file: BinaryIO) -> str:
    """Write an index, and return its SHA-256. Not by faiss: it takes no notice when closing a file fails, as on a full
    disk, and a torn file would get a checksum of its own."""
    import faiss

    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    faiss.write_index(index, faiss.PyCallbackIOWriter(put))  # type: ignore[attr-defined]
    return digest.hexdigest()


def mapped(index: Any, path: Path, sha256: str) -> FaissFile:
    """The file that an index has just been written to."""
    size = path.stat().st_size
    head = size - index.ntotal * _unchecked(index)
    with path.open("rb") as file:
        return FaissFile(path, size=size, sha256=sha256, head=head, head_crc32=_crc32(file, head))


def _unchecked(index: Any) -> int:
    """Bytes of each document that lie together at the end of an index's file, and cannot lead FAISS astray."""
    import faiss

    if type(index) in (faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ):
        return int(index.code_size) + LABEL
    if type(index) is faiss.IndexHNSWSQ:
        return int(faiss.downcast_index(index.storage).sa_code_size())
    return 0


def _cells(index: Any, head: int) -> dict[int, tuple[int, int]]:
    """Start and length of each cell that holds anything, in bytes: they follow each other behind the head."""
    sizes = np.array([index.invlists.list_size(cell) for cell in range(index.nlist)]) * (index.code_size + LABEL)
    starts = head + np.cumsum(sizes) - sizes
    return {cell: (int(starts[cell]), int(sizes[cell])) for cell in np.flatnonzero(sizes).tolist()}


def _crc32(file: BufferedReader, length: int) -> int:
    """Of the first bytes of a file."""
    file.seek(0)
    check, buffer = 0, memoryview(bytearray(CHUNK))
    while length and (read := file.readinto(buffer[: min(CHUNK, length)])):
        check = zlib.crc32(buffer[:read], check)
        length -= read
    return check
