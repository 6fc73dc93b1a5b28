"""How likely given documents are: the log-probability of their parts, by one forward pass over known tokens.

What targets have in common, the documents and the prompt up to its first blank, is read once for all of them: each label
of a classification costs no more than its own few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...interfaces import Score
from .drawing import checked
from .prefix_cache import PrefixCache, read
from .prompt import Prompt
from .transformer import Transformer

if TYPE_CHECKING:
    import torch

# Targets are read side by side up to so many tokens: attention passes over those of the others too, and that costs more
# than it saves once they are many.
_SIDE_BY_SIDE = 512


def score_prompts(
    transformer: Transformer, prefixes: PrefixCache, filled: Sequence[tuple[Prompt, list[list[int]]]]
) -> list[Score]:
    """Scores of prompts with what stands in their blanks (ids), each token under the grammar that decoding obeys."""
    import torch

    scores: dict[int, Score] = {}
    for numbers in _alike([prompt for prompt, _ in filled]):
        first = filled[numbers[0]][0]
        start = first.start()
        past, states = read(transformer, *start, prefixes.read(transformer, first.context))
        written = [filled[number][0].complete(filled[number][1]) for number in numbers]
        # What is fed of each behind the start; what follows the last token that is scored does not count.
        own = [slice(len(start[0]), max(int(place[-1]) for place in places) + 1) for _, places in written]
        for piece in _pieces([span.stop - span.start for span in own]):
            ids = [written[i][0].ids[own[i]] for i in piece]
            positions = np.concatenate([written[i][0].positions[own[i]] for i in piece])
            branches = [len(each) for each in ids]
            _, hidden = read(transformer, np.concatenate(ids), positions, past, branches)
            for i, tokens, after in zip(piece, ids, hidden.split(branches), strict=True):
                places = [place - own[i].start for place in written[i][1]]
                predicting = torch.cat((states[-1:], after))  # the state before each token
                scores[numbers[i]] = _score(transformer, filled[numbers[i]][0], tokens, places, predicting)
    return [scores[number] for number in range(len(filled))]


def _alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The numbers of prompts that begin with the same tokens, up to the first blank, behind the same documents."""
    groups: dict[bytes, list[int]] = {}
    for number, prompt in enumerate(prompts):
        pairs = [*((s.ids, s.positions) for s in prompt.context), prompt.start()]
        groups.setdefault(b"".join(side.tobytes() for pair in pairs for side in pair), []).append(number)
    return list(groups.values())


def _pieces(lengths: Sequence[int]) -> Iterator[list[int]]:
    """What is read side by side, in order: the numbers of targets of together at most `_SIDE_BY_SIDE` tokens, or of one."""
    piece: list[int] = []
    for number, length in enumerate(lengths):
        if piece and sum(lengths[i] for i in piece) + length > _SIDE_BY_SIDE:
            yield piece
            piece = []
        piece.append(number)
    if piece:
        yield piece


def _score(
    transformer: Transformer, prompt: Prompt, ids: np.ndarray, places: Sequence[np.ndarray], predicting: torch.Tensor
) -> Score:
    """The score of one target. places: of each blank where its tokens stand in `ids`; predicting: [tokens + 1, width]."""
    import torch

    vocabulary = prompt.format.vocabulary
    # By part: a region of a picture is several blanks.
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    with torch.inference_mode():
        for (part, _), place in zip(prompt.blanks, places, strict=True):
            states = predicting[torch.from_numpy(place).to(predicting.device)]
            wanted = torch.from_numpy(ids[place]).to(predicting.device)
            if prompt.parts[part].modality == "image":
                logits = transformer.logits(states, vocabulary.first_image, vocabulary.size)
                columns = wanted - vocabulary.first_image
            else:
                # The last column is the end of the text, which is drawn like its other tokens.
                logits = transformer.logits(states, 0, vocabulary.text_tokens)
                stop = transformer.logits_of(states[:, None], wanted[-1:].expand(len(place)))
                logits, columns = torch.cat((logits, stop), -1), wanted.clamp_max(vocabulary.text_tokens)
            found = checked(float(logits.log_softmax(-1).gather(1, columns[:, None]).sum()))
            sums[part] = sums.get(part, 0.0) + found
            counts[part] = counts.get(part, 0) + len(place)
    return Score(tuple(sums.values()), tuple(counts.values()))
