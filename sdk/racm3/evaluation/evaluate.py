"""The whole evaluation: every condition answers the same prompts, and every figure has its interval (paper section 4).

evaluation = evaluate(pipeline, read_pairs("./photos"), vanilla=Cm3Generator(checkpoint="./vanilla"))
write_report(evaluation, Path("report"))
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..answering import all_options
from ..document import Image, Modality
from ..errors import ConfigError, GenerationError, ModalityError
from ..interfaces import Generator, Hit, Progress, Request, Retriever
from ..options import Options
from ..pipeline import Pipeline
from .bootstrap import Figure, mean_figure
from .caption_tokens import require_pycocoevalcap
from .captions import caption_figures
from .classification import Episode, accuracy, episodes, nearest_label
from .conditions import Condition, conditions, top_pictures, top_texts
from .drawings import DrawingMetrics
from .fid import inception_weights, require_torchmetrics
from .grounding import Grounding, prompt
from .pairs import Pair
from .perplexity import perplexity_figure

# Prompts that are answered together: enough to fill a batch, few enough that progress shows.
_CHUNK = 64
_SAMPLES = 24
_CAPTION_TOKENS = 48
# What a condition is shown in k-shot classification, where that is not the examples.
_SHOWN: Mapping[str, Literal["none", "random"]] = {"no_documents": "none", "random_documents": "random"}
_ENOUGH = 8  # captions after each other that can be held: shorter ones are taken to be, too


@dataclass(frozen=True)
class Sample:
    """A pair, what its prompt for a picture was grounded on, and the answers by condition."""

    pair: Pair
    hits: tuple[Hit, ...]
    drawings: dict[str, Image] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """figures: all of them as plain values, for JSON. samples: evenly spread over the pairs, picked by nobody."""

    figures: dict[str, Any]
    samples: list[Sample]


def evaluate(
    pipeline: Pipeline,
    pairs: Sequence[Pair],
    *,
    vanilla: Generator | None = None,
    encoder: Retriever | None = None,
    k: int = 2,
    seeds: int = 1,
    options: Options | Mapping[str, Any] | None = None,
    label: str | None = None,
    shots: int = 1,
    ways: int = 2,
    inception: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare RA-CM3 with the same model without documents and with random ones, with `vanilla`, and with handing back
    the top document, on pairs that none of them is shown the answer of.

    encoder: in whose space drawings are judged; the pipeline's own retriever by default, which favours what it found,
    and the report says so. seeds: drawings per prompt, each of its own seed. options: of drawings, where they differ from
    the pipeline's; captions are greedy, with the same context guidance.
    label: the metadata key of class names, for k-shot classification: `shots` examples of each of `ways` classes.
    inception: a file of Inception weights for FID. Raises `ConfigError` for fewer than two pairs, `GenerationError` and
    `ModalityError` for a pipeline that cannot draw and describe.
    """
    began = time.perf_counter()
    require_pycocoevalcap()
    require_torchmetrics()
    if pipeline.generator is None:
        raise GenerationError("This pipeline has no generator to evaluate.", "Give one: [generator].")
    if len(pairs) < 2 or seeds < 1:
        raise ConfigError(f"An evaluation needs two pairs and one seed at least, not {len(pairs)} and {seeds}.")
    weights, judge = inception_weights(inception), encoder or pipeline.retriever
    options = all_options(pipeline.generator.options_type, options, defaults=pipeline.options, seed=0)
    if not pipeline.generator.emits & pipeline.generator.accepts >= {"image", "text"}:
        raise ModalityError(
            f"{type(pipeline.generator).__name__} does not turn pictures into texts and texts into pictures."
        )
    pairs, too_long = _held([pipeline.generator, *([vanilla] if vanilla is not None else [])], pairs)
    asked = [] if label is None else _episodes(pipeline, pairs, label, shots, ways)
    compared = conditions(Grounding(pipeline, pairs, k), vanilla)
    tick = _ticker(progress, len(compared) * len(pairs) * (seeds + 1 + 2))
    entities = [pair.entity for pair in pairs]
    notes, cut = _notes(judge.encoder == pipeline.retriever.encoder, weights, entities), Counter[str]()

    drawings, chosen = DrawingMetrics(pairs, judge, weights), _spread(len(pairs))
    samples = [Sample(pairs[i], tuple(compared[0].requests["image"][i].context)) for i in chosen]
    for hit in (hit for sample in samples for hit in sample.hits):
        _ = hit.document  # read now: whoever writes the report may have closed the memory
    pictures: dict[str, dict[str, Figure]] = {}
    texts: dict[str, dict[str, Figure]] = {}
    tokenizer = "plain"
    for condition in compared:
        drawn = [
            _answers(condition, "image", options.model_copy(update={"n": 1, "seed": seed}), tick, cut)
            for seed in range(seeds)
        ]
        pictures[condition.name] = {
            **drawings.figures(drawn), "perplexity": _perplexity(condition, "image", pairs, entities, tick)
        }  # fmt: skip
        greedy = options.model_copy(update={"temperature": 0.0, "max_text_tokens": _CAPTION_TOKENS})
        written = _answers(condition, "text", greedy, tick, cut)
        texts[condition.name], tokenizer = caption_figures(written, pairs)
        texts[condition.name]["perplexity"] = _perplexity(condition, "text", pairs, entities, tick)
        for sample, i in zip(samples, chosen, strict=True):
            sample.drawings[condition.name], sample.captions[condition.name] = drawn[0][i], written[i]
    if (found := top_pictures(compared[0].requests["image"])) is not None:
        pictures["top_document"] = drawings.figures([found])
    if (said := top_texts(compared[0].requests["text"])) is not None:
        texts["top_document"], _ = caption_figures(said, pairs)
    if "top_document" not in pictures or "top_document" not in texts:
        notes.append("The retrieval baseline is left out where a prompt found no document with a picture, or a text.")
    if count := cut["ra_cm3"]:
        notes.append(f"Not all {k} documents fit into the generator's context: {count} answers rest on fewer.")
    if tokenizer == "plain":
        notes.append("CIDEr and BLEU by a plain tokenizer, as there is no Java: not comparable with published rows.")
    figures: dict[str, Any] = {
        "pairs": len(pairs), "entities": len(set(entities)), "memory": len(pipeline.memory), "k": k, "seeds": seeds,
        "options": options.model_dump(), "caption_tokenizer": tokenizer,
        "fid_network": "inception" if weights is not None else "encoder",
        "fingerprints": {
            "retriever": pipeline.retriever.encoder.fingerprint, "evaluation_encoder": judge.encoder.fingerprint,
            "generator": pipeline.generator.fingerprint, "vanilla": vanilla.fingerprint if vanilla is not None else None,
        },
        "text_to_image": _plain(pictures), "image_to_text": _plain(texts),
    }  # fmt: skip
    if asked:
        figures["classification"] = {
            "label": label,
            "shots": shots,
            "ways": ways,
            **_classification(asked, compared, pipeline.retriever),
        }
    figures |= {"skipped": too_long, "notes": notes, "seconds": round(time.perf_counter() - began, 1)}
    return Evaluation(figures, samples)


def _held(generators: Sequence[Generator], pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """The pairs whose captions all generators can hold, and what is said of the others. Longer ones are tried first, until
    some after each other can be held: how many tokens a caption has is not known here."""
    kept, told, held = list(pairs), list[str](), 0
    for pair in sorted(pairs, key=lambda pair: len(pair.caption.encode("utf-8", "surrogatepass")), reverse=True):
        try:
            for generator in generators:
                generator.score([Request(prompt(pair, "text"))], [pair.document])
            held += 1
            if held == _ENOUGH:
                break
        except GenerationError as error:
            if len(kept) == 2:  # then it is not for the length of a caption
                raise
            kept.remove(pair)
            told.append(f"{pair.document.id}: {error.message}")
            held = 0
    return kept, told


def _notes(own: bool, weights: Path | None, entities: Sequence[str]) -> list[str]:
    notes, count = list[str](), len(entities)
    if len(set(entities)) == 1:
        notes.append("All pairs are of one entity: every drawing counts as right, and recall@1 and MRR say nothing.")
    if own:
        notes.append(
            "Drawings are judged by the encoder that also retrieves, which favours what it found: give another, --encoder."
        )
    if weights is None:
        notes.append(
            "FID is taken in the evaluation encoder's space, not Inception's: not comparable with published rows."
        )
    elif count < 2048:
        notes.append(
            f"FID rests on {count} pictures, fewer than Inception has dimensions: compare the rows here alone."
        )
    return notes


def _answers(
    condition: Condition, blank: Modality, options: Options, tick: Callable[[int, str], None], cut: Counter[str]
) -> list[Any]:
    """A picture, or a text, for each request. cut: of each condition, answers that rest on fewer documents than were given."""
    made: list[Any] = []
    for part in _chunks(condition.requests[blank]):
        for request, outputs in zip(part, condition.generator.generate(part, options=options), strict=True):
            document, seen = outputs[0].document, outputs[0].grounded_on
            cut[condition.name] += seen is not None and len(seen) < len(request.context)
            made.append(document.images[-1] if blank == "image" else document.texts[0])
        tick(len(part), f"{condition.name}, {blank}")
    return made


def _perplexity(
    condition: Condition,
    blank: Modality,
    pairs: Sequence[Pair],
    entities: Sequence[str],
    tick: Callable[[int, str], None],
) -> Figure:
    """Of the true picture, or caption, per token."""
    scores = []
    truths = iter(pair.document for pair in pairs)
    for part in _chunks(condition.requests[blank]):
        scores += condition.generator.score(part, [next(truths) for _ in part])
        tick(len(part), f"{condition.name}, perplexity")
    return perplexity_figure(scores, entities)


def _episodes(pipeline: Pipeline, pairs: Sequence[Pair], label: str, shots: int, ways: int) -> list[Episode]:
    asked = episodes(pairs, pipeline.memory, label=label, shots=shots, ways=ways)
    if not asked:
        raise ConfigError(
            f"The memory has no {shots} examples of any label {label!r} of the pairs.",
            "Fewer --shots, or another --label.",
        )
    return asked


def _classification(asked: Sequence[Episode], compared: Sequence[Condition], retriever: Retriever) -> dict[str, Any]:
    """Here the vanilla model is given the same examples as ours: documents of a prompt are all that k-shot is."""
    entities, right = [episode.pair.entity for episode in asked], dict[str, np.ndarray]()
    for condition in compared:
        right[condition.name] = accuracy(condition.generator, asked, _SHOWN.get(condition.name, "examples"))
    right["top_document"] = nearest_label(retriever, asked)
    figures = {name: {"accuracy": mean_figure(values, entities)} for name, values in right.items()}
    return {"episodes": len(asked), "figures": _plain(figures)}


def _plain(figures: dict[str, dict[str, Figure]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        condition: {name: {"value": figure.value, "interval": figure.interval} for name, figure in row.items()}
        for condition, row in figures.items()
    }


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)).tolist()


def _chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), _CHUNK):
        yield requests[start : start + _CHUNK]


def _ticker(progress: Progress | None, total: int) -> Callable[[int, str], None]:
    done = 0

    def tick(count: int, what: str) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, what)

    return tick
