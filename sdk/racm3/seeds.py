"""Random streams: what a prompt's random numbers come from, besides the seed of the call."""

from __future__ import annotations

from collections.abc import Sequence

from .document import Document


def stream_keys(prompts: Sequence[Document]) -> list[tuple[int, int]]:
    """For each prompt a key of its content, and how many equal prompts came before it in the call.

    `numpy.random.default_rng([seed, *key, sample])` then gives a sample the same numbers whatever else is in the call.

    >>> (a, _), (b, _), (c, nth) = stream_keys([Document("a"), Document("b"), Document("a")])
    >>> a == c != b, nth
    (True, 1)
    """
    before: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        digest = prompt.content_hash
        before[digest] = before.get(digest, -1) + 1
        keys.append((int(digest[:12], 16), before[digest]))
    return keys
