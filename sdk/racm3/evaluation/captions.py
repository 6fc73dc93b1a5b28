"""Figures of captions: how much of them agrees with what people wrote?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .answers import exact_match, token_f1
from .bleu import Bleu4
from .bootstrap import Figure, mean_figure, set_figure
from .caption_tokens import Tokenizer, tokenize_captions
from .cider import cider
from .pairs import Pair


def caption_figures(written: Sequence[str], pairs: Sequence[Pair]) -> tuple[dict[str, Figure], Tokenizer]:
    """CIDEr and BLEU-4 (times 100), exact match and token F1 against the best of the references; and the tokenizer."""
    entities, references = [pair.entity for pair in pairs], [pair.references for pair in pairs]
    tokens = tokenize_captions(written, references)
    bleu = Bleu4(tokens)

    def best(metric: Callable[[str, str], float]) -> np.ndarray:
        return np.array(
            [max(metric(said, truth) for truth in texts) for said, texts in zip(written, references, strict=True)]
        )

    return {
        "cider": mean_figure(cider(tokens), entities),
        "bleu_4": set_figure(lambda weights: 100 * bleu(weights), entities),
        "exact_match": mean_figure(best(exact_match), entities),
        "token_f1": mean_figure(best(token_f1), entities),
    }, tokens.tokenizer
