"""What is shipped with this package: trained models, a ready memory, and the drawings that are held out of it.

bundle/retriever           an open_clip folder
bundle/evaluation-encoder  another, of another architecture and seed
bundle/generator           a CM3 checkpoint
bundle/memory              a read-only FaissMemory: training documents, and test entities by other vendors
bundle/held-out            for each test entity one vendor's drawings, which the memory lacks
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from racm3.errors import WeightsNotFound

if TYPE_CHECKING:
    from racm3.document import Document
    from racm3.interfaces import Progress

    from .stages import Run
    from .world import World

BUNDLE = Path(__file__).parent / "bundle"
OPTIONS = {"context_guidance": 3.0}  # of every answer: chosen by the drawings and captions of the validation entities
COLOURS = 48  # of a remembered drawing: a quarter fewer bytes, at 57 dB on average


def pipeline_tables() -> dict[str, dict[str, Any]]:
    """The tables of the preset "emoji"."""
    if not (BUNDLE / "bundle.json").is_file():
        raise WeightsNotFound(
            f"There is no trained bundle in {BUNDLE}.", "Reinstall racm3-emoji, or train: racm3 emoji train"
        )
    return {
        "retriever": {"name": "clip", "model": str(BUNDLE / "retriever")},
        "memory": {"name": "faiss", "path": str(BUNDLE / "memory"), "read_only": True},
        "sampler": sampler_table(BUNDLE),
        "generator": {"name": "cm3", "checkpoint": str(BUNDLE / "generator")},
        "options": OPTIONS,
    }


def sampler_table(bundle: Path) -> dict[str, Any]:
    """The sampler of a bundle, as in a pipeline's tables."""
    table: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())["sampler"]
    return table


def held_out_documents() -> Iterator[Document]:
    """The drawings that the memory lacks: the truth that the demo compares with, first one of each test entity."""
    from racm3.document import Document, Image

    for line in (BUNDLE / "held-out" / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        image = Image(BUNDLE / "held-out" / record["image"])
        yield Document([record["text"], image], id=record["id"], metadata=record["metadata"])


def assemble(run: Run, destination: Path, progress: Progress | None = None) -> None:
    """Put the models of a run, and a memory made with them, into a bundle folder."""
    from racm3.memories.faiss import FaissMemory
    from racm3.retrievers.clip import ClipRetriever

    destination.mkdir(parents=True, exist_ok=True)
    for stage in ("retriever", "evaluation-encoder", "generator"):
        shutil.rmtree(destination / stage, ignore_errors=True)
        # Not the modes: safetensors writes files that nobody else may read.
        shutil.copytree(run.model(stage), destination / stage, copy_function=shutil.copyfile)
    # Also of a generator that was trained with plain top-K: it makes no difference to it, and keeps repeats out of the context.
    sampler = {"name": "diverse", "threshold": run.recipe("generator")["neighbours"]["threshold"]}
    (destination / "bundle.json").write_text(json.dumps({"sampler": sampler}) + "\n")

    training, remembered, held_out = divide(run.world)
    retriever = ClipRetriever(str(destination / "retriever"))
    memory = FaissMemory(precision="float16")  # finds the same, in 1.5 MB less
    memory.bind(retriever.encoder)
    rows = [*training, *remembered]
    for start in range(0, len(rows), 256):
        documents = [_webp_document(run.world, row) for row in rows[start : start + 256]]
        memory.add(documents, retriever.encode_document(documents))
        if progress is not None:
            progress(min(start + 256, len(rows)), len(rows), "memory")
    shutil.rmtree(destination / "memory", ignore_errors=True)
    memory.export_read_only(destination / "memory")
    memory.close()
    _write_held_out(run.world, held_out, destination / "held-out")


def divide(world: World) -> tuple[list[int], list[int], list[int]]:
    """Base forms as row numbers: training entities; test entities that are remembered; those that are held out.

    Of each test entity one vendor, by a hash of the entity, is held out with all its drawings.
    """
    from .stages import vendor

    remembered, held_out = [], []
    for rows in _by_entity(world, world.select(split="test", base_form=True)).values():
        vendors = sorted({vendor(world.drawings[row]) for row in rows})
        digest = hashlib.sha256(world.drawings[rows[0]].entity.encode()).digest()
        chosen = vendors[int.from_bytes(digest[8:16]) % len(vendors)]
        held_out += [row for row in rows if vendor(world.drawings[row]) == chosen]
        remembered += [row for row in rows if vendor(world.drawings[row]) != chosen]
    return world.select(split="train", base_form=True).tolist(), remembered, held_out


def _by_entity(world: World, rows: np.ndarray) -> dict[str, list[int]]:
    entities: dict[str, list[int]] = {}
    for row in rows.tolist():
        entities.setdefault(world.drawings[row].entity, []).append(row)
    return entities


def _webp(world: World, row: int) -> bytes:
    """A drawing as WebP, without loss but for its colours, of which the commonest are kept. The most thorough method
    would save another 0.6 % in fifty times the time."""
    import PIL.Image

    drawing = world.image(row).convert("RGB")
    few = drawing.quantize(COLOURS, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
    buffer = io.BytesIO()
    few.convert("RGB").save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _webp_document(world: World, row: int) -> Document:
    from racm3.document import Document, Image

    from .stages import document

    made = document(world, row)
    return Document([made.texts[0], Image(_webp(world, row))], id=made.id, metadata=made.metadata)


def _write_held_out(world: World, rows: list[int], folder: Path) -> None:
    from .stages import document

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for row in rows:
        made = document(world, row)
        name = made.id.replace("/", "-") + ".webp"
        (folder / name).write_bytes(_webp(world, row))
        record = {"id": made.id, "image": name, "text": made.texts[0], "metadata": dict(made.metadata)}
        lines.append(json.dumps(record, ensure_ascii=False))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
