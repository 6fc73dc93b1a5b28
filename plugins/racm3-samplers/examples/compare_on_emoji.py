"""What each sampler puts before the generator, on the shipped emoji world: python compare_on_emoji.py [--k 2] [--write FILE]

The targets are the drawings that the memory lacks; each is asked for by its text. Of a target's entity the memory holds the
other vendors' drawings, and a context is of use when it holds one of them. Every entity weighs the same.
"""

from __future__ import annotations

import argparse
import re
from itertools import combinations
from pathlib import Path

import numpy as np

from racm3 import Document, Pipeline, Sampler
from racm3.interfaces import Hit, Query
from racm3.samplers.diverse import DiverseSampler
from racm3.samplers.topk import TopKSampler
from racm3_emoji.bundle import held_out_documents
from racm3_samplers.cluster import ClusterSampler
from racm3_samplers.dpp import DppSampler
from racm3_samplers.mmr import MmrSampler

SAMPLERS: dict[str, Sampler] = {
    "`topk`": TopKSampler(),
    "`diverse` 0.9 (the paper's)": DiverseSampler(0.9),
    "`mmr` 0.5 (default)": MmrSampler(0.5),
    "`mmr` 0.7": MmrSampler(0.7),
    "`mmr` 0.9": MmrSampler(0.9),
    "`dpp` 0.7 (default)": DppSampler(0.7),
    "`dpp` 0.9": DppSampler(0.9),
    "`dpp` 0.97": DppSampler(0.97),
    "`cluster` 8 (default)": ClusterSampler(8),
    "`cluster` 2": ClusterSampler(2),
}


def figures(truth: Document, hits: list[Hit]) -> list[float]:
    """Whether the entity is there; the share of the context that shows it; likeness; vendors of it; mean score."""
    shown = [h.document.metadata["vendor"] for h in hits if h.document.metadata["entity"] == truth.metadata["entity"]]
    alike = [float(one.vector @ other.vector) for one, other in combinations(hits, 2)]
    scores = [h.score for h in hits]
    return [bool(shown), len(shown) / len(hits), float(np.mean(alike)), len(set(shown)), float(np.mean(scores))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=2, help="documents in a context, 2 or more")
    parser.add_argument("--pool", type=int, default=64, help="candidates, as of Pipeline.generate")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put it between the figures marks of a README, too")
    asked = parser.parse_args()
    report = compare(asked.k, asked.pool)
    print(report)
    if asked.write is not None:
        marked = re.compile(r"(<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)
        text, found = marked.subn(lambda mark: f"{mark[1]}{report}\n", asked.write.read_text(encoding="utf-8"))
        if not found:
            parser.error(f"{asked.write} has no <!-- figures --> ... <!-- /figures -->")
        asked.write.write_text(text, encoding="utf-8")


def compare(k: int, pool: int) -> str:
    """The table, in Markdown."""
    truth = list(held_out_documents())
    entities = [d.metadata["entity"] for d in truth]
    weights = np.array([1 / entities.count(entity) for entity in entities])
    with Pipeline.from_preset("emoji", generator=None) as pipeline:
        queries = [Document(d.texts[0]) for d in truth]
        vectors = pipeline.retriever.encode_query(queries)
        found = pipeline.memory.search(vectors, k=pool)
        lines = [
            f"{len(truth)} drawings of {len(set(entities))} entities, {len(pipeline.memory):,} documents, "
            f"{pool} candidates, k = {k}",
            "",
            "| sampler | entity in the context | share of it | likeness | vendors of the entity | mean score |",
            "|---|---|---|---|---|---|",
        ]
        for name, sampler in {"the preset's own": pipeline.sampler, **SAMPLERS}.items():
            rows = []
            for document, query, vector, hits in zip(truth, queries, vectors, found, strict=True):
                rng = np.random.default_rng(0)
                chosen = sampler.sample(Query(query, vector), hits, k=k, rng=rng).hits
                rows.append(figures(document, chosen))
            means = np.average(np.array(rows, dtype=float), axis=0, weights=weights)
            lines.append(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
