"""Controlled generation: the documents decide: python examples/05_steer_by_context.py [--out steered.png]

One caption, drawn after documents that are given by hand: first one flag, then another, then the first one together with
a retrieved document. Below each drawing stands the document that it was given.
"""

import argparse
from pathlib import Path

from PIL import Image

from racm3 import Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("steered.png"))
arguments = parser.parse_args()

with Pipeline.from_preset("emoji") as pipeline:
    names = ("flag: Kuwait", "flag: Sweden")
    kuwait, sweden = (pipeline.search(name, k=1, where={"name": name})[0] for name in names)
    caption = "a flag"
    drawn = [
        pipeline.imagine(caption, context=[kuwait], seed=0, options={"temperature": 0.5}),
        pipeline.imagine(caption, context=[sweden], seed=0, options={"temperature": 0.5}),
        pipeline.imagine(
            caption, context=[kuwait], k=1, where={"group": "flags"}, seed=0, options={"temperature": 0.5}
        ),
    ]

sheet = Image.new("RGB", (3 * 200, 400), "white")
for column, answer in enumerate(drawn):
    sheet.paste(answer.image.picture.resize((192, 192)), (column * 200 + 4, 4))
    sheet.paste(answer.hits[0].document.image.picture.resize((192, 192)), (column * 200 + 4, 204))
    print([hit.document.text for hit in answer.hits])
sheet.save(arguments.out)
print(f"drawn in {arguments.out}")
