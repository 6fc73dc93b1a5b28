"""A memory as webdataset shards: what moves between stores, versions and machines.

    export_memory(memory, Path("shards"))                    # any MemoryStore
    import_memory(Path("shards"), ChromaMemory(Path("chroma")))

The folder holds shard-000000.tar, shard-000001.tar ... and `export.json`: the encoder, and the checksum of each shard. In a
shard each document has a key, and under it

    KEY.json           {"id": ..., "metadata": {...}, "parts": [{"text": ...}, {"image": "png", "hash": ...}, ...]}
    KEY.png, KEY.1.jpg its pictures, as they were stored; the first, and those after it
    KEY.txt            its text, for other readers of such shards
    KEY.npy            its vector, float32 [dim]

A shard is there whole or not at all, and an export is one only when its last shard is there: then `export.json` says so.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..document import Document, Image, Text
from ..durable import make_folder, part_of, publish
from ..errors import InvalidImage, MemoryCorrupt, MemoryStoreError, RACM3Error
from ..interfaces import Encoder, MemoryStore, OnDuplicate
from ..webdataset import samples
from .arguments import check_policy
from .checksum import json_checksum, sha256_of

if TYPE_CHECKING:
    from ..interfaces import Progress

MANIFEST = "export.json"
FORMAT = 1
SHARD_BYTES = 2**28
BATCH = 64  # documents, with their pictures, that an import holds at a time, and stores in one call

# What the first bytes of a picture say it is; the suffix is only for other readers.
_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}


logger = logging.getLogger("racm3.memories")


class Shard(NamedTuple):
    name: str
    documents: int
    sha256: str


class Export:
    """A finished export. Raises `MemoryStoreError` where there is none, or one that was not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._broken: dict[str, str] | None = None
        found = _manifest(self.folder)
        if found is None:
            raise MemoryStoreError(
                f"There is no export of a memory at {folder}.", "Make one: racm3 memory export MEMORY FOLDER"
            )
        if not found["finished"]:
            raise MemoryStoreError(f"The export at {folder} was not finished.", "Export again to the same folder.")
        try:
            self.encoder = Encoder(str(found["encoder"]["fingerprint"]), int(found["encoder"]["dim"]))
            self.shards = [
                Shard(str(one["name"]), int(one["documents"]), str(one["sha256"])) for one in found["shards"]
            ]
            # Nothing outside is read, and what is no name at all is not asked for.
            if any(Path(shard.name).name != shard.name or "\0" in shard.name for shard in self.shards):
                raise ValueError(self.shards)
            if not 0 < self.encoder.dim < 2**31:
                raise ValueError(self.encoder)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(self.folder / MANIFEST) from error

    def __len__(self) -> int:
        return sum(shard.documents for shard in self.shards)

    def check(self, *, skip_broken: bool = False, progress: Progress | None = None) -> dict[str, str]:
        """The shards that are not as they were written, with what is wrong with each; read once. Raises `MemoryCorrupt`,
        naming them, unless skip_broken."""
        if self._broken is None:
            self._broken = self._found_broken(progress)
        if self._broken and not skip_broken:
            raise MemoryCorrupt(
                f"{len(self._broken)} of {len(self.shards)} shards are broken. "
                + " ".join(f"{name}: {why}." for name, why in self._broken.items()),
                "Copy them again, or do without: --skip-broken (skip_broken=True).",
            )
        return self._broken

    def _found_broken(self, progress: Progress | None) -> dict[str, str]:
        wrong = {}
        for done, shard in enumerate(self.shards, start=1):
            try:
                if sha256_of(self.folder / shard.name) != shard.sha256:
                    wrong[shard.name] = "it does not match its checksum"
            except OSError as error:
                wrong[shard.name] = error.strerror or str(error)
            if progress is not None:
                progress(done, len(self.shards), shard.name)
        return wrong

    def items(self, *, without: Collection[str] = ()) -> Iterator[tuple[Document, np.ndarray]]:
        """All documents with their vectors (float32 [dim]) in the order of the memory, streamed; as `MemoryStore.items`.

        without: names of shards to pass over. Raises `MemoryCorrupt`, naming shard and key, for what cannot be read.
        """
        for shard in self.shards:
            if shard.name not in without:
                yield from _read(self.folder / shard.name, self.encoder.dim)


def export_memory(
    memory: MemoryStore,
    folder: Path,
    *,
    encoder: Encoder | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Export:
    """Write all documents of a memory, with their vectors, as shards.

    folder: missing, empty, or that of an export which was not finished: it is begun anew. encoder: of a memory that does
    not tell its own. shard_bytes: a shard ends with the document that reaches so many. progress: called with the number
    written, the number in all, and the shard. Raises `MemoryStoreError`; an unfinished export is never taken for another.
    """
    encoder = encoder or memory.encoder
    if encoder is None:
        raise MemoryStoreError("The memory is not bound to an encoder: there is nothing to export.")
    folder, shards, items, total = Path(folder), list[Shard](), memory.items(), len(memory)
    try:
        _begin(folder)
        while (item := next(items, None)) is not None:
            name, first, done = f"shard-{len(shards):06d}.tar", sum(shard.documents for shard in shards), 0
            part = folder / part_of(name)
            try:
                with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
                    while item is not None:
                        _write(tar, f"{first + done:09d}", *item)
                        done += 1
                        if progress is not None:
                            progress(first + done, total, name)
                        item = next(items, None) if tar.offset < shard_bytes else None
                shards.append(Shard(name, done, sha256_of(part)))
                publish(part, folder / name)
            finally:
                part.unlink(missing_ok=True)
        try:
            _write_manifest(folder, finished=True, encoder=encoder, shards=shards)
        except OSError:
            with suppress(OSError):  # it may be there, though not for sure; so it is not finished
                _write_manifest(folder, finished=False)
            raise
    except OSError as error:
        hint = "Make room, and export again." if error.errno == errno.ENOSPC else "Give a folder that can be written."
        raise MemoryStoreError(f"The export cannot be written to {folder}: {error.strerror or error}.", hint) from error
    return Export(folder)


def import_memory(
    export: Export | Path,
    memory: MemoryStore,
    *,
    on_duplicate: OnDuplicate = "skip",
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Add all documents of an export, with their vectors, to a memory; returns the broken shards that were passed over.

    Every shard is checked before the first document is stored; one that is broken stops the import, unless skip_broken.
    The memory is bound to the export's encoder, or `EncoderMismatch`. An import that was interrupted goes on where it
    is begun again: by "skip", what is stored stays. progress: called with the number read, the number in all, and "import".
    """
    check_policy(on_duplicate)
    export = export if isinstance(export, Export) else Export(export)
    broken = export.check(skip_broken=skip_broken)
    memory.bind(export.encoder)
    items, done = export.items(without=broken), 0
    while batch := list(islice(items, BATCH)):
        memory.add([document for document, _ in batch], np.stack([row for _, row in batch]), on_duplicate=on_duplicate)
        done += len(batch)
        if progress is not None:
            progress(done, len(export), "import")
    memory.flush()
    return broken


# Writing


def _begin(folder: Path) -> None:
    """Make a folder ready for an export, or say why it cannot be."""
    if folder.exists() and not folder.is_dir():
        raise MemoryStoreError(f"{folder} is a file; an export is a folder.", "Give another path.")
    make_folder(folder)
    begun = _manifest(folder)
    if begun is None and any(name != part_of(MANIFEST) for name in os.listdir(folder)):
        raise MemoryStoreError(f"{folder} is not an empty folder.", "Give another path.")
    if begun is not None and begun["finished"]:
        raise MemoryStoreError(f"{folder} holds an export already.", "Give another path, or remove it.")
    if begun is None:
        _write_manifest(folder, finished=False)  # from here on the shards in the folder are known to be ours
    else:  # the memory may have changed since, so none of its shards can be trusted to be a part of this one
        logger.warning("The export at %s was not finished; it is begun anew.", folder)
    for old in [*folder.glob("shard-*.tar"), *folder.glob(part_of("shard-*.tar"))]:
        old.unlink()


def _write(tar: tarfile.TarFile, key: str, document: Document, vector: np.ndarray) -> None:
    parts: list[dict[str, str]] = []
    files: dict[str, bytes] = {}
    for part in document.parts:
        if isinstance(part, Text):
            parts.append({"text": part.text})
        elif isinstance(part, Image):
            kind = next((kind for start, kind in _SUFFIXES.items() if part.data.startswith(start)), "bin")
            name = f"{len(files)}.{kind}" if files else kind
            files[name] = part.data
            parts.append({"image": name, "hash": part.content_hash})
    # Escaped to ASCII: half a surrogate, as a file name may hold, is kept.
    said = {"id": document.id, "metadata": dict(document.metadata), "parts": parts}
    array = io.BytesIO()
    np.save(array, np.asarray(vector, dtype="<f4"), allow_pickle=False)
    text = document.text.encode("utf-8", "replace")
    files = {"json": json.dumps(said).encode(), **files, **({"txt": text} if text else {}), "npy": array.getvalue()}
    for suffix, data in files.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _write_manifest(
    folder: Path, *, finished: bool, encoder: Encoder | None = None, shards: Collection[Shard] = ()
) -> None:
    said: dict[str, Any] = {"format": FORMAT, "finished": finished}
    if encoder is not None:
        said["encoder"] = {"fingerprint": encoder.fingerprint, "dim": int(encoder.dim)}
        said["shards"] = [shard._asdict() for shard in shards]
    # A flipped bit could tie a new memory to an encoder that is not the vectors'.
    said["checksum"] = json_checksum(said)
    part = folder / part_of(MANIFEST)
    part.write_text(json.dumps(said, indent=1), encoding="utf-8")
    publish(part, folder / MANIFEST)


# Reading


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What `export.json` says; None when there is none."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, sound = found["format"], found["checksum"] == json_checksum(found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MemoryStoreError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if sound and version != FORMAT:
        raise MemoryStoreError(f"{path} has format {version}; this racm3 reads format {FORMAT}.", "Upgrade racm3.")
    if not sound or not isinstance(found.get("finished"), bool):
        raise _damaged(path)
    return dict(found)


def _damaged(path: Path) -> MemoryCorrupt:
    return MemoryCorrupt(f"{path} is damaged, or not of an export of racm3.", "Copy it, or export the memory, again.")


def _read(path: Path, dim: int) -> Iterator[tuple[Document, np.ndarray]]:
    try:
        for key, files, fault in samples(path):
            try:
                if fault:
                    raise ValueError(fault)
                yield exported_document(files), _vector(files, dim)
            except Exception as error:  # numpy raises TokenError, SyntaxError, ValueError ... on a bad header
                why = error.message if isinstance(error, RACM3Error) else str(error)
                raise MemoryCorrupt(f"{path.name}: {key} cannot be read: {why}.", "Export it again.") from error
    except RACM3Error:
        raise
    except Exception as error:  # tarfile raises TarError, OSError, ValueError, OverflowError ... on a bad header
        raise MemoryCorrupt(f"{path.name} cannot be read: {error}.", "Copy it, or export it, again.") from error


def exported_document(files: Mapping[str, bytes]) -> Document:
    """The document of an export's sample, as it was. Raises `RACM3Error`, `KeyError`, `TypeError` or `ValueError`."""
    said = json.loads(files["json"])
    parts = [
        Text(part["text"]) if "text" in part else _image(files[part["image"]], part["hash"]) for part in said["parts"]
    ]
    return Document(parts, id=said["id"], metadata=said["metadata"])


def _image(data: bytes, content_hash: str) -> Image:
    """A picture that shows what its hash says; one that was given as pixels keeps the hash of these."""
    stored = Image.restore(data, content_hash)  # within its own limits, whatever these were
    shown = Image(data, max_bytes=len(data)).content_hash
    if shown != content_hash and Image(stored.picture, max_pixels=stored.pixels).content_hash != content_hash:
        raise InvalidImage("a picture is not the one that its hash names")
    return stored


def _vector(files: Mapping[str, bytes], dim: int) -> np.ndarray:
    file = io.BytesIO(files["npy"])
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its vector has another format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype("<f4") or shape != (dim,):
        raise ValueError(f"its vector is {dtype} {list(shape)}, not float32 [{dim}]")
    return np.frombuffer(file.read(4 * dim), dtype="<f4", count=dim).astype(np.float32)
