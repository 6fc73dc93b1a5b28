"""Checks of what is stored, piece by piece, and what is said where one fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MemoryCorrupt


def checksum(*pieces: bytes) -> bytes:
    """64 bits against rot and torn writes; what names contents is their SHA-256."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()


def matches(check: object, *pieces: object) -> bool:
    """Whether what was read has this checksum; damage can also change its type."""
    for piece in pieces:
        if not isinstance(piece, bytes):
            return False
    return check == checksum(*pieces)  # type: ignore[arg-type]


def json_checksum(said: Mapping[str, Any]) -> str:
    """SHA-256, as hex, of what a JSON file says, but for its `checksum`."""
    values = {name: value for name, value in said.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def corrupt(name: str) -> MemoryCorrupt:
    return MemoryCorrupt(
        f"Document {name!r} does not match its checksum.",
        "Delete it (racm3 memory delete), or restore the memory from a backup.",
    )
