"""For tests, yours and ours: real components without weights, which answer in milliseconds."""

from __future__ import annotations

from .fakes import HashingRetriever, PaintingGenerator

__all__ = ["HashingRetriever", "PaintingGenerator"]
