"""Does an answer say the same as the truth? Exact match and token F1, over words."""

from __future__ import annotations

import re
from collections import Counter


def normal_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def exact_match(answer: str, truth: str) -> float:
    """1 if both have the same words in the same order, else 0."""
    return float(normal_words(answer) == normal_words(truth))


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of word precision and recall (SQuAD, arXiv 1606.05250)."""
    said, wanted = Counter(normal_words(answer)), Counter(normal_words(truth))
    common = sum((said & wanted).values())
    if not common:
        return float(said == wanted)
    return 2 * common / (sum(said.values()) + sum(wanted.values()))
