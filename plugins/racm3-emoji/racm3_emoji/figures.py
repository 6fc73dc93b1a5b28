"""Every figure of the emoji world, measured on what is shipped (or on a run): `racm3 emoji evaluate`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from racm3.document import Document
from racm3.evaluation.answers import exact_match, token_f1
from racm3.evaluation.bootstrap import Weights, bootstrap_interval, mean_by_group, mean_figure, set_figure
from racm3.evaluation.caption_tokens import require_pycocoevalcap, tokenize_captions
from racm3.evaluation.cider import cider
from racm3.evaluation.cmmd import Cmmd
from racm3.evaluation.frechet import frechet_distance
from racm3.evaluation.psnr import psnr
from racm3.evaluation.recall import retrieval
from racm3.interfaces import Output, Request
from racm3.options import Options

from .protocol import Protocol
from .stages import hand

if TYPE_CHECKING:
    from racm3.generators.cm3.generator import Cm3Generator
    from racm3.interfaces import Progress, Retriever

SEEDS = (0, 1, 2)


def image_tokenizer_figures(protocol: Protocol, generator: Cm3Generator) -> dict[str, Any]:
    """Mean PSNR in dB of the targets through the image tokenizer."""
    tokenizer = generator.checkpoint.image_tokenizer
    originals = np.asarray(protocol.world.pixels[protocol.targets])
    values = psnr(tokenizer.decode(tokenizer.encode(originals)), originals)
    return {
        "psnr": float(values.mean()), "tokens": tokenizer.tokens, "codes": tokenizer.codes, "drawings": len(values),
        "psnr_by_group": by_group(values, protocol),
    }  # fmt: skip


def retriever_figures(protocol: Protocol) -> dict[str, Any]:
    """Recall@1 of the targets' entities, each entity weighing the same.

    name_to_entity: the name alone, in the memory of full documents. drawing_to_vendor: a drawing, in the memory without
    what its own vendor drew of it. name_to_drawing: the name, in a memory of the same drawings without their texts.
    """
    documents, vectors = zip(*protocol.memory.items(), strict=True)
    gallery = np.stack(vectors)
    labels = [str(d.metadata["entity"]) for d in documents]
    hands = np.array([f"{d.metadata['entity']}/{d.metadata['vendor']}" for d in documents])
    own = _hands(protocol)
    retriever, truth = protocol.retriever, protocol.truth()
    names = retriever.encode_query([Document(str(d.metadata["name"])) for d in truth])
    drawings = retriever.encode_query([Document(d.images[0]) for d in truth])
    pictures = retriever.encode_document([Document(d.images[0]) for d in documents])
    allowed = own[:, None] != hands[None]
    found = {
        "name_to_entity": retrieval(names, gallery, protocol.entities, labels),
        "drawing_to_vendor": retrieval(drawings, gallery, protocol.entities, labels, allowed=allowed),
        "drawing_to_vendor_drawings_only": retrieval(drawings, pictures, protocol.entities, labels, allowed=allowed),
        "name_to_drawing": retrieval(names, pictures, protocol.entities, labels),
    }
    return {
        "memory": len(documents), "queries": len(truth),
        **{name: summary(result.hits, protocol) for name, result in found.items()},
    }  # fmt: skip


def likelihood_figures(protocol: Protocol, requests: dict[str, tuple[Cm3Generator, list[Request]]]) -> dict[str, Any]:
    """Perplexity per image token of the targets' drawings, by condition."""
    figures: dict[str, Any] = {}
    truth = protocol.truth()
    for name, (generator, asked) in requests.items():
        scores = generator.score(asked, truth)
        nats = np.array([-s.log_probability / sum(s.tokens) for s in scores])
        low, high = bootstrap_interval(nats, protocol.entities)
        figures[name] = {
            "perplexity": math.exp(mean_by_group(nats, protocol.entities)),
            "interval": [math.exp(low), math.exp(high)],
            "by_group": {group: math.exp(value) for group, value in by_group(nats, protocol).items()},
        }
    return figures


def drawing_figures(
    protocol: Protocol, evaluator: Retriever, pictures: dict[str, list[list[Output]]]
) -> dict[str, Any]:
    """Does a drawing retrieve its own entity among all targets' true drawings, and how far are all drawings together
    from the true ones (Fréchet distance, CMMD)? By condition, over all its seeds.

    evaluator: the evaluation encoder, which has no part in making the drawings; its space is where distances are taken.
    style: how often a drawing is nearest, of all true drawings of its entity, to that of the vendor who was asked for;
    of entities that several vendors drew.
    """
    truth = protocol.truth()
    gallery = evaluator.encode_document([Document(d.images[0]) for d in truth])
    figures: dict[str, Any] = {"true_drawing_of_another_vendor": _other_vendor(protocol, gallery)}
    hands, entities = _hands(protocol), np.array(protocol.entities)
    same = entities[:, None] == entities[None]
    several = (same & (hands[:, None] != hands[None])).any(1)
    for name, seeds in pictures.items():
        hits, ranks, styles = [], [], []
        drawn = [evaluator.encode_query([Document(o.document.images[-1]) for o in outputs]) for outputs in seeds]
        for vectors in drawn:
            found = retrieval(vectors, gallery, protocol.entities, protocol.entities)
            hits.append(found.hits)
            ranks.append(found.reciprocal_ranks)
            styles.append(retrieval(vectors, gallery, hands.tolist(), hands.tolist(), allowed=same).hits[several])
        figures[name] = {
            **summary(np.mean(hits, axis=0), protocol),
            "mrr": mean_by_group(np.mean(ranks, axis=0), protocol.entities),
            "style": mean_by_group(np.mean(styles, axis=0), entities[several].tolist()),
            "recall_by_seed": [mean_by_group(h, protocol.entities) for h in hits],
            **distances(drawn, gallery, protocol),
        }
    return figures


def distances(drawn: Sequence[np.ndarray], gallery: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """Fréchet distance and CMMD (times 1000) of each seed's drawings from the true ones, averaged over the seeds."""
    kernels = [Cmmd(vectors, gallery) for vectors in drawn]

    def frechet(weights: Weights) -> float:
        return float(np.mean([frechet_distance(vectors, gallery, weights) for vectors in drawn]))

    def discrepancy(weights: Weights) -> float:
        return float(np.mean([kernel(weights) for kernel in kernels]))

    distance, cmmd = set_figure(frechet, protocol.entities), set_figure(discrepancy, protocol.entities)
    return {
        "frechet_distance": distance.value, "frechet_distance_interval": distance.interval,
        "cmmd": cmmd.value, "cmmd_interval": cmmd.interval,
    }  # fmt: skip


def _other_vendor(protocol: Protocol, gallery: np.ndarray) -> dict[str, Any]:
    """What the evaluation encoder itself can do: a true drawing finds another vendor's drawing of its entity."""
    own = _hands(protocol)
    found = retrieval(gallery, gallery, protocol.entities, protocol.entities, allowed=own[:, None] != own[None])
    return summary(found.hits, protocol)


def _hands(protocol: Protocol) -> np.ndarray:
    """Who drew each target, and what."""
    return np.array([hand(protocol.world.drawings[row]) for row in protocol.targets])


def caption_figures(protocol: Protocol, captions: dict[str, list[Output]]) -> dict[str, Any]:
    """Exact match, token F1 and CIDEr of the name in a caption, by condition. The style in a caption does not count."""
    names = [protocol.world.drawings[row].name for row in protocol.targets]
    figures = {}
    for condition, outputs in captions.items():
        said = [re.sub(r", in .* style$", "", output.document.texts[0]) for output in outputs]
        exact = np.array([exact_match(a, b) for a, b in zip(said, names, strict=True)])
        overlap = np.array([token_f1(a, b) for a, b in zip(said, names, strict=True)])
        tokens = tokenize_captions(said, [[name] for name in names])
        consensus = mean_figure(cider(tokens), protocol.entities)
        figures[condition] = {
            "exact_match": mean_by_group(exact, protocol.entities),
            "token_f1": mean_by_group(overlap, protocol.entities),
            "cider": consensus.value, "cider_interval": consensus.interval, "tokenizer": tokens.tokenizer,
            "exact_match_by_group": by_group(exact, protocol),
        }  # fmt: skip
    return figures


def evaluate(
    protocol: Protocol,
    ours: Cm3Generator,
    vanilla: Cm3Generator | None,
    evaluator: Retriever,
    *,
    options: Options,
    seeds: Sequence[int] = SEEDS,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, list[list[Output]]]]:
    """All figures, and the drawings that they rest on (by condition and seed)."""
    require_pycocoevalcap()
    asked = {
        "k2": (ours, protocol.drawing_requests("retrieved", 2)),
        "k1": (ours, protocol.drawing_requests("retrieved", 1)),
        "k0": (ours, protocol.drawing_requests("none", 0)),
        "random": (ours, protocol.drawing_requests("random", 2)),
    }
    if vanilla is not None:
        asked["vanilla"] = (vanilla, protocol.drawing_requests("none", 0))
    plain = options.model_copy(update={"context_guidance": 1.0})
    drawn = {"k2": (*asked["k2"], options), "unguided": (*asked["k2"], plain)}
    drawn |= {name: (*each, options) for name, each in asked.items() if name not in ("k1", "k2")}
    steps, done = 4 + len(seeds) * len(drawn), 0

    def tick(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps, what)

    figures: dict[str, Any] = {"entities": len(set(protocol.entities)), "targets": len(protocol.targets)}
    figures["options"] = options.model_dump()
    figures["image_tokenizer"] = image_tokenizer_figures(protocol, ours)
    figures["retriever"] = retriever_figures(protocol)
    tick("retriever")
    figures["likelihood"] = likelihood_figures(protocol, asked)
    tick("likelihood")
    pictures: dict[str, list[list[Output]]] = {}
    for name, (generator, requests, how) in drawn.items():
        pictures[name] = []
        for seed in seeds:
            outputs = generator.generate(requests, options=how.model_copy(update={"seed": seed}))
            pictures[name].append([samples[0] for samples in outputs])
            tick(f"drawings, {name}")
    pictures["top document"] = [_top_documents(asked["k2"][1])]
    figures["drawings"] = drawing_figures(protocol, evaluator, pictures)
    greedy = Options(temperature=0, max_text_tokens=32)
    guided = greedy.model_copy(update={"context_guidance": options.context_guidance})
    grounded, alone = protocol.caption_requests("retrieved", 2), protocol.caption_requests("none", 0)
    captions = {"k2": (ours, grounded, guided), "unguided": (ours, grounded, greedy), "k0": (ours, alone, greedy)}
    if vanilla is not None:
        captions["vanilla"] = (vanilla, alone, greedy)
    written = {
        name: [outputs[0] for outputs in generator.generate(requests, options=how)]
        for name, (generator, requests, how) in captions.items()
    }
    figures["captions"] = caption_figures(protocol, written)
    tick("captions")
    figures["same_entity_in_context"] = _same_entity(protocol, asked["k2"][1])
    tick("done")
    return figures, pictures


def _top_documents(requests: Sequence[Request]) -> list[Output]:
    """The retrieval baseline: hand back the best document."""
    return [Output(request.context[0].document, 0.0, 0) for request in requests]


def _same_entity(protocol: Protocol, requests: Sequence[Request]) -> dict[str, float]:
    """Share of targets of which the first, or any, context document shows the entity."""
    shows = [
        [hit.document.metadata["entity"] == entity for hit in request.context]
        for request, entity in zip(requests, protocol.entities, strict=True)
    ]
    first, either = np.array([s[:1] == [True] for s in shows]), np.array([any(s) for s in shows])
    return {
        "first": mean_by_group(first.astype(float), protocol.entities),
        "any": mean_by_group(either.astype(float), protocol.entities),
    }


def summary(values: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """Mean over entities, its interval, and means by group."""
    return {
        "recall_at_1": mean_by_group(values, protocol.entities),
        "interval": list(bootstrap_interval(values, protocol.entities)),
        "by_group": by_group(values, protocol),
    }


def by_group(values: np.ndarray, protocol: Protocol) -> dict[str, float]:
    """Means over the entities of each group."""
    groups, entities = np.array(protocol.groups), np.array(protocol.entities)
    return {str(g): mean_by_group(values[groups == g], entities[groups == g].tolist()) for g in np.unique(groups)}
