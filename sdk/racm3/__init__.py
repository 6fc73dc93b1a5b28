"""racm3: retrieval-augmented generation of text and images, made of parts that can be swapped.

    from racm3 import Pipeline

    pipeline = Pipeline.from_preset("emoji")
    pipeline.imagine("flag: Denmark, in Twemoji style").image

The names here are what users and plugins start from; what passes between the parts is in `racm3.interfaces`, errors are
in `racm3.errors`. Importing racm3 imports none of its parts: each name is resolved when it is first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collection import read_folder
    from .document import Blank, Document, Image, MaskedImage, MaskedText, Text
    from .errors import RACM3Error
    from .generation import Generation
    from .hookspecs import Component, Preset, hookimpl
    from .interfaces import Generator, Hit, MemoryStore, Retriever, Sampler
    from .options import Options
    from .pipeline import Pipeline

_HOMES = {
    "Blank": "document",
    "Component": "hookspecs",
    "Document": "document",
    "Generation": "generation",
    "Generator": "interfaces",
    "Hit": "interfaces",
    "Image": "document",
    "MaskedImage": "document",
    "MaskedText": "document",
    "MemoryStore": "interfaces",
    "Options": "options",
    "Pipeline": "pipeline",
    "Preset": "hookspecs",
    "RACM3Error": "errors",
    "Retriever": "interfaces",
    "Sampler": "interfaces",
    "Text": "document",
    "hookimpl": "hookspecs",
    "read_folder": "collection",
}

__all__ = [
    "Blank", "Component", "Document", "Generation", "Generator", "Hit", "Image", "MaskedImage",
    "MaskedText", "MemoryStore", "Options", "Pipeline", "Preset", "RACM3Error", "Retriever", "Sampler", "Text", "hookimpl",
    "read_folder",
]  # fmt: skip

# Silent unless the application asks for more.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version(__name__)
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
