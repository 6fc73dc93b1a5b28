"""Your own folder of pictures: python examples/02_your_own_pictures.py [FOLDER]

A folder with pictures and same-name .txt captions, or one .jsonl with "image" and "text". Without a folder, the script
makes a small one. The encoder is the small one of the emoji preset; for photographs, install weights of your choice:
ClipRetriever("ViT-B-32", pretrained="laion2b_s34b_b79k").
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from racm3 import Pipeline, read_folder


def example_folder(folder: Path) -> Path:
    for name in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} square")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


with tempfile.TemporaryDirectory() as scratch:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else example_folder(Path(scratch))
    memory = Path(scratch) / "memory"
    with Pipeline.from_preset("emoji", memory={"path": str(memory), "read_only": False}) as pipeline:
        skipped = []
        pipeline.add(read_folder(folder, on_skip=lambda path, error: skipped.append((path, error))))
        print(f"{len(pipeline.memory)} documents, {len(skipped)} skipped: {[str(error) for _, error in skipped]}")
        for hit in pipeline.search("a blue square", k=2):
            print(f"{hit.score:.3f}  {hit.document.id}  {hit.document.text}")
