"""Exports whose files are not as they were written, or are made to do harm: they are imported as they are, or refused.

The cases of memory_fuzz.py about `racm3.memories.shards`: "sound", when there was nothing to refuse, or the error.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from contextlib import suppress
from pathlib import Path

from damaged_memories import Files, check, put, stored, taken
from memory_steps import ENCODER, names, vectors
from mutations import Wrong, mutated, reworded

from racm3.collection import read_shards
from racm3.errors import RACM3Error
from racm3.memories import shards
from racm3.memories.checksum import json_checksum
from racm3.memories.faiss import FaissMemory
from racm3.memories.shards import Export, export_memory, import_memory

FIRST = (0, 3)  # numbers of the first documents of two exports
KNOWN = {(name, 0) for first in FIRST for name in names(first, 7)}


def exports(scratch: Path) -> list[Files]:
    """Two exports of several shards, of documents with and without pictures."""
    found = []
    for first in FIRST:
        state = dict.fromkeys(names(first, 7), 0)
        with FaissMemory() as memory:
            memory.bind(ENCODER)
            memory.add([stored(*one)[0] for one in state.items()], vectors(state))
            export_memory(memory, scratch / f"export{first}", shard_bytes=6000)
        found.append(taken(scratch / f"export{first}"))
    return found


def imports(made: list[Files], folder: Path, draw: random.Random) -> str:
    """An export. Most of them say that the damage is what was written: made to do harm, they reach what reads shards."""
    one, other = draw.sample(made, 2)
    files, forged, skip = {**one}, draw.random() < 0.7, draw.random() < 0.3
    name = draw.choice(sorted(files))
    if name == shards.MANIFEST and draw.random() < 0.7:
        files[name] = reworded(files[name], draw)
    elif name != shards.MANIFEST and forged and draw.random() < 0.7:
        files[name] = repacked(files[name], draw)
    else:
        files[name] = mutated(files[name], other.get(name, b""), draw)
    if forged:
        if name != shards.MANIFEST and draw.random() < 0.5:
            files[name] = tar_sums(files[name])
        files[shards.MANIFEST] = signed(files, only=name == shards.MANIFEST)
    put(folder, files)
    outcome = "sound"
    with FaissMemory() as memory:
        try:
            import_memory(Export(folder), memory, skip_broken=skip)
        except RACM3Error as error:
            outcome = type(error).__name__
        for document, vector in memory.items():
            if not forged:
                check(document, KNOWN, vector=vector)
            for image in document.images:
                with suppress(RACM3Error):  # as it was exported
                    image.picture  # noqa: B018
        if problems := memory.verify():
            raise Wrong(f"after the import: {problems}")
    changed = files != one and files[shards.MANIFEST] == one[shards.MANIFEST]
    if changed and not forged and outcome == "sound" and not skip:
        raise Wrong("a damaged export was imported")
    return outcome


def readings(made: list[Files], folder: Path, draw: random.Random) -> str:
    """Shards alone, read as documents: what is bad is passed over, and never an error."""
    one, other = draw.sample(made, 2)
    files = {name: data for name, data in one.items() if name != shards.MANIFEST}
    name = draw.choice(sorted(files))
    damage = draw.random()
    if damage < 0.4:
        files[name] = repacked(files[name], draw)
    elif damage < 0.7:
        files[name] = mutated(files[name], other.get(name, b""), draw)
    else:
        files[name] = resized(files[name], draw)
    if damage >= 0.7 or draw.random() < 0.5:
        files[name] = tar_sums(files[name])
    put(folder, files)
    passed_over: list[str] = []
    for _ in read_shards(folder, on_skip=lambda where, error: passed_over.append(where)):
        pass
    return "passed over" if passed_over else "sound"


def signed(files: Files, *, only: bool) -> bytes:
    """The manifest of an export with right checksums: of what is there, or only its own."""
    try:
        said = json.loads(files[shards.MANIFEST])
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return files[shards.MANIFEST]
    if not only:
        for shard in said["shards"]:
            shard["sha256"] = hashlib.sha256(files[shard["name"]]).hexdigest()
    said["checksum"] = json_checksum(said)
    return json.dumps(said).encode()


def repacked(data: bytes, draw: random.Random) -> bytes:
    """A shard of which one file is another."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar, tarfile.open(fileobj=made, mode="w") as new:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        chosen = draw.randrange(len(members))
        for number, (name, content) in enumerate(members):
            if number == chosen:
                kind = draw.random()
                if kind < 0.1:
                    continue
                if kind < 0.2:
                    name = draw.choice((members[0][0], "../x", "/x", "x" * 300, ".json", name + ".png"))
                elif name.endswith(".json") and kind < 0.7:
                    content = reworded(content, draw)
                else:
                    content = mutated(content, draw.choice(members)[1], draw)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return made.getvalue()


def resized(data: bytes, draw: random.Random) -> bytes:
    """A shard of which one file says that it has another size: below zero, a little off, or more than there is."""
    made = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = draw.choice(list(tar))
    size = draw.choice(
        (-512, -1024, -(draw.randrange(1, 40)) * 512, member.size + draw.randrange(-600, 600), 2**33, 2**80)
    )
    written = b"%011o\0" % size if 0 <= size < 2**33 else (size % 256**12).to_bytes(12)
    made[member.offset + 124 : member.offset + 136] = written
    if draw.random() < 0.3:
        made[member.offset + 156 : member.offset + 157] = draw.choice(
            (b"x", b"L", b"K", b"S", b"5", b"1", b"2", b"7", b"g")
        )
    return bytes(made)


def tar_sums(data: bytes) -> bytes:
    """A tar file whose headers have right checksums."""
    made, at = bytearray(data), 0
    while at + 512 <= len(made) and any(made[at : at + 512]):
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
        try:
            size = tarfile.nti(bytes(made[at + 124 : at + 136]))  # type: ignore[attr-defined]
        except tarfile.TarError:
            break
        at += 512 + max(0, size + 511) // 512 * 512
    return bytes(made)
