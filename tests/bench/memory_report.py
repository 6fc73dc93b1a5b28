"""memory_speed.md, made of what memory_speed.py has written: python tests/bench/memory_report.py"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from memory_stores import STORES

VECTOR = 512 * 4  # bytes
ENOUGH = 0.99  # of recall
TITLES = {"none": "all documents", "topic": "1 % selective", "recent": "50 % selective"}

Series = Sequence[float | None]


def table(folder: Path) -> str:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("memory_speed.*.json")]
    parts = [
        "# How quick a memory is\n",
        "Made by memory_speed.py; what stands in brackets are the quartiles of rounds.\n",
    ]
    for result in sorted(found, key=lambda result: (result["documents"], result.get("name", ""))):
        parts += section(result)
    return "\n".join(parts)


def section(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    heading = f", {result['name']}" if result.get("name") else ""
    return [
        f"## {result['documents']:,} documents{heading}\n",
        "Vectors of width 512, 2 KB of text, two fields; ten hits for a query. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']} GB; {machine['system']}, Python "
        f"{machine['python']}; {versions}.\n",
        f"`{result['command']}` ({result['seconds'] / 60:.0f} minutes). "
        + (
            "The files of a store are read before its turn, so that they are in memory.\n"
            if result.get("warmed")
            else "Files are in memory as far as the system keeps them there.\n"
        ),
        *[f"- {name}: {STORES[name].__doc__}" for name in result["stores"]],
        "",
        *grid(["what", "goal", "measured", ""], goals(result)),
        "### Beside raw faiss: ids and scores\n",
        "As it comes: `search` of the very index that the memory has made; each turn begins with queries that are not timed, "
        "except after a pause: there the first ones follow ten milliseconds without any. By its factory: of hnsw a graph as "
        "faiss makes it by default, looking as far as it takes to find 99 %; of ivf the same cells, found by their centres in "
        "float32.\n",
        *grid(["index", "queries", "faiss", "racm3 ms", "faiss ms", "racm3 : faiss", "µs more", "recall"], raw(result)),
        "### Ten hits with their texts, one query at a time\n",
        "Each store's own knob is at the cheapest setting that finds 99 % by other queries. × is how many times as long "
        "as the quickest memory of racm3 that finds so much. A hit that is as near as the tenth, to 1e-6, is one of the ten.\n",
        *grid(["store", *(f"{title} {of}" for title in TITLES.values() for of in ("ms", "×", "recall"))], searches(result)),
        *grid(["store", "documents", *(f"setting, {title}" for title in TITLES.values())], settings(result)),
        "### Adding, and room\n",
        "In bulk: batches of strings and a matrix, until the store has acknowledged them; its index afterwards, where it "
        "makes one. One by one, some tens in a turn: beside a write and fsync of as many bytes"
        + (", when the files of all of them were in memory" if result.get("warmed_for_adding") else "")
        + ". fsyncs: calls of it and its like, by strace.\n",
        *grid(
            ["store", "documents/s", "index, s", "one, ms", "× write + fsync", "fsyncs for one", "disk, B/document"],
            adding(result),
        ),
        "### Opening in a fresh process, and its memory\n",
        "From after the imports to the first answer. A filter that the process has not met, and once more. Memory after "
        "100 searches without a filter, of a document: what the process has more than with a thousand of them.\n",
        *grid(
            ["store", "import, s", "open + first, ms", "1 %: first / again", "50 %: first / again", "RSS, B", "of it anonymous", "PSS, B"],
            opening(result),
        ),
        "### Not run, or not to its end\n",
        *[f"- {what}: {why}" for what, why in result["not_run"].items()],
        *[
            f"- {name}: stopped at {store['held']:,} documents, and measured with these"
            for name, store in result["stores"].items()
            if store["held"] < result["documents"]
        ],
        "",
    ]  # fmt: skip


def grid(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""] if lines else ["Not measured.\n"]


def spread(values: Series, digits: int = 2) -> str:
    """Median, and quartiles."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    low, middle, high = np.quantile(there, [0.25, 0.5, 0.75])
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def middle(values: Series) -> float:
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else float("nan")


def ratios(above: Series, below: Series) -> list[float]:
    """Round by round, where both took part."""
    return [a / b for a, b in zip(above, below, strict=False) if a is not None and b is not None]


def rounds(result: dict[str, Any], store: str, kind: str) -> Series:
    return result["stores"].get(store, {}).get("search", {}).get(kind, {}).get("rounds", [])


def found(result: dict[str, Any], store: str, kind: str) -> float:
    """Its recall."""
    recalls = result["stores"].get(store, {}).get("search", {}).get(kind, {}).get("recalls", [])
    return float(np.mean(recalls)) if recalls else 0.0


def by_others(result: dict[str, Any], store: str, kind: str) -> float:
    """Its recall of the queries by which its knob was set: one that was just enough may not be by those that are timed."""
    return result["stores"][store]["search"][kind]["recall_held_out"]


def quickest(result: dict[str, Any], kind: str, *, ours: bool, least: float = ENOUGH) -> str | None:
    """Of the stores that find enough."""
    names = [
        name
        for name in result["stores"]
        if name.startswith("racm3") == ours
        and any(rounds(result, name, kind))
        and (found(result, name, kind) >= least or (not ours and by_others(result, name, kind) >= least))
    ]
    return min(names, key=lambda name: middle(rounds(result, name, kind)), default=None)


def holding(result: dict[str, Any], store: str) -> str:
    """The store's name, with how little it holds where that is not all."""
    held = result["stores"][store]["held"]
    return store if held == result["documents"] else f"{store} (which holds only {held:,})"


def goals(result: dict[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []

    def goal(what: str, wanted: str, measured: str, reached: bool) -> None:
        rows.append([what, wanted, measured, "reached" if reached else "**missed**"])

    for name, made in result["raw"].items():
        if name == "racm3 exact":
            for queries, times in (("one", 2.5), ("200", 6)):
                usual = made[queries]["as it comes"]
                quicker = ratios(usual["raw"], usual["racm3"])
                best = min(middle(ratios(way["raw"], way["racm3"])) for way in made[queries].values())
                whole = made["recall"]["racm3"]
                text = f"{spread(quicker)}×; of faiss at its best {best:.2f}×; recall {whole:.4f}"
                title = "query" if queries == "one" else "queries at once"
                goal(f"exact, {queries} {title}, beside IndexFlatIP", f"≥ {times}× quicker", text, middle(quicker) >= times and whole == 1)  # fmt: skip
        else:
            usual = made["one"]["as it comes"]
            share, more = middle(ratios(usual["racm3"], usual["raw"])), middle(usual["more"]) * 1000
            text = f"{share:.3f}×, {more:.0f} µs more"
            if "by its factory" in made["one"]:
                beside = made["one"]["by its factory"]
                text += f"; beside one of faiss's factory {middle(ratios(beside['racm3'], beside['raw'])):.3f}×"
            goal(f"{name}, ids and scores, beside the same index of faiss", "≤ 1.03× and ≤ 50 µs more", text, share <= 1.03 and more <= 50)  # fmt: skip
    for kind, title in TITLES.items():
        ours = quickest(result, kind, ours=True, least=ENOUGH if kind == "none" else 1.0)
        theirs = quickest(result, kind, ours=False)
        if ours is None:
            goal(f"{title}, with texts", "", "no memory of racm3 found enough", False)
            continue
        own = rounds(result, ours, kind)
        if theirs is not None:
            times = ratios(rounds(result, theirs, kind), own)
            goal(f"{title}, with texts", "quickest" if kind == "none" else "quickest, exact", f"{ours}: {spread(times)}× beside {holding(result, theirs)}", middle(times) >= 1)  # fmt: skip
        if kind == "none":
            times = ratios(rounds(result, "chromadb", kind), own)
            if times:
                goal(f"{title}, with texts, beside chromadb", "≥ 5× quicker", f"{ours}: {spread(times)}× beside {holding(result, 'chromadb')}", middle(times) >= 5)  # fmt: skip
            if result["documents"] <= 100_000:
                goal(f"{title}, with texts", "≤ 0.5 ms", f"{ours}: {spread(own)} ms", middle(own) <= 0.5)
    stores = result["stores"]
    own, chroma = stores.get("racm3 exact", {}), stores.get("chromadb", {})
    if own.get("ingest") and chroma.get("ingest"):
        times = ratios(own["ingest"], chroma["ingest"])
        goal("adding in bulk, beside chromadb", "≥ 10×", f"{spread(times, 1)}×", middle(times) >= 10)
    if own.get("single"):
        if chroma.get("single"):
            times = ratios(chroma["single"], own["single"])
            goal("adding one, beside chromadb", "≥ 5× quicker", f"{spread(times, 1)}×", middle(times) >= 5)
        times = ratios(own["single"], result["bare_fsync"])
        goal("adding one, beside a bare write and fsync", "≤ 3×", f"{spread(times)}×", middle(times) <= 3)
    for name, store in stores.items():
        if name.startswith("racm3") and store.get("open"):
            took = [one["first_answer"] for one in store["open"]]
            goal(f"{name}: open and first query", "≤ 100 ms", f"{spread(took, 0)} ms", middle(took) <= 100)
    for name, limit, least in (("racm3 exact", 1.1 * VECTOR, 1.0), ("racm3 ivf-pq", 120, 0.95)):
        if "memory" in stores.get(name, {}):
            took, share = each(stores[name], "rss"), found(result, name, "none")
            text = f"{took:,.0f} B ({each(stores[name], 'anonymous'):,.0f} B anonymous), recall {share:.3f}"
            goal(f"{name}: memory of a document", f"≤ {limit:,.0f} B at recall ≥ {least}", text, took <= limit and share >= least)  # fmt: skip
    return rows


def each(store: dict[str, Any], kind: str) -> float:
    """Bytes of memory of a document."""
    return (store["memory"][kind] - store["small_memory"][kind]) / max(1, store["held"] - store["small"])


def raw(result: dict[str, Any]) -> Iterable[list[str]]:
    for name, made in result["raw"].items():
        for queries in ("one", "200"):
            for way, times in made.get(queries, {}).items():
                share, more = ratios(times["racm3"], times["raw"]), [one * 1000 for one in times["more"]]
                shares = made["recall_by_factory" if way == "by its factory" else "recall"]
                recall = f"{shares['racm3']:.4f} : {shares['raw']:.4f}"
                yield [name, queries, way, f"{middle(times['racm3']):.3f}", f"{middle(times['raw']):.3f}", spread(share, 3), spread(more, 0), recall]  # fmt: skip


def searches(result: dict[str, Any]) -> Iterable[list[str]]:
    for name, store in result["stores"].items():
        if "search" in store:
            row = [name]
            for kind in TITLES:
                times, best = rounds(result, name, kind), quickest(result, kind, ours=True)
                share = found(result, name, kind)
                beside = spread(ratios(times, rounds(result, best, kind)), 1) if best and best != name else "–"
                row += [spread(times), beside, f"{share:.3f}" if share >= ENOUGH else f"**{share:.3f}**"]
            yield row


def settings(result: dict[str, Any]) -> Iterable[list[str]]:
    for name, store in result["stores"].items():
        if "search" in store:
            knobs = [store["search"].get(kind, {}).get("knob", {}) for kind in TITLES]
            yield [
                name,
                f"{store['held']:,}",
                *(", ".join(f"{knob} {to}" for knob, to in one.items()) or "–" for one in knobs),
            ]


def adding(result: dict[str, Any]) -> Iterable[list[str]]:
    for name, store in result["stores"].items():
        single, disk = store.get("single", []), store.get("bytes")
        yield [
            name,
            spread(store.get("ingest", []), 0),
            f"{store['index_seconds']:.1f}" if "index_seconds" in store else "–",
            spread(single),
            spread(ratios(single, result.get("bare_fsync", [])), 1),
            f"{store['fsyncs']:.1f}" if "fsyncs" in store else "–",
            f"{disk / max(1, store['held']):,.0f}" if disk else "–",
        ]


def opening(result: dict[str, Any]) -> Iterable[list[str]]:
    for name, store in result["stores"].items():
        if "memory" not in store:
            continue
        opened = store.get("open", [])

        def filtered(kind: str, opened: Any = opened) -> str:
            both = [[ms for one in opened for ms in one[f"{kind}_{time}"]] for time in ("first", "repeated")]
            return " / ".join(f"{middle(times):.2f}" for times in both) if opened else "–"

        yield [
            name,
            f"{middle(store['import_seconds']):.2f}" if opened else "–",
            spread([one["first_answer"] for one in opened], 0),
            filtered("topic"),
            filtered("recent"),
            *(f"{each(store, kind):,.0f}" for kind in ("rss", "anonymous", "pss")),
        ]


def rounded(value: Any) -> Any:
    """With as many digits as mean something."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine(threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = sorted({package for store in STORES.values() for package in store.packages} | {"numpy"})
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": model,
        "cores": threads,
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "memory_speed.md").write_text(table(here), encoding="utf-8")
