"""Texts as SQLite keeps them here."""

from __future__ import annotations


def encoded(text: str) -> bytes:
    """A str as SQLite keeps it here: bytes, since file names may hold lone surrogates, which SQLite's TEXT cannot.
    Bytes sort by code point, as Python's str does."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes) -> str:
    """What `encoded` was given. What damage has made unreadable is shown as it is, for the message that names it."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except (AttributeError, UnicodeDecodeError):
        return repr(data)
