"""Controlled generation: the documents decide: python examples/05_steer_by_context.py [--out steered.png]

One caption, drawn after documents that are given by hand: first one flag, then another, then the first one together with
a retrieved document. From top to bottom: as the model draws of itself, with context guidance, and the document given.
"""

import argparse
from pathlib import Path

from PIL import Image

from racm3 import Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("steered.png"))
arguments = parser.parse_args()

sheet = Image.new("RGB", (3 * 200, 3 * 200), "white")
with Pipeline.from_preset("emoji") as pipeline:
    names = ("flag: Kuwait", "flag: Sweden")
    kuwait, sweden = (pipeline.search(name, k=1, where={"name": name})[0] for name in names)
    for column, (given, retrieved) in enumerate([(kuwait, 0), (sweden, 0), (kuwait, 1)]):
        for row, guidance in enumerate([1.0, 3.0]):
            options = {"context_guidance": guidance, "temperature": 0.5}
            answer = pipeline.imagine(
                "a flag", context=[given], k=retrieved, where={"group": "flags"}, seed=0, options=options
            )
            sheet.paste(answer.image.picture.resize((192, 192)), (column * 200 + 4, row * 200 + 4))
        sheet.paste(given.document.image.picture.resize((192, 192)), (column * 200 + 4, 404))
        print([hit.document.text for hit in answer.hits])
sheet.save(arguments.out)
print(f"drawn in {arguments.out}")
