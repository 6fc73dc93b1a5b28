"""Eight guided samples, the best first, watched as they are drawn: python examples/08_guidance_ranking_streams.py [--out best.png]"""

import argparse
from pathlib import Path

from PIL import Image

from racm3 import Blank, Document, Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--prompt", default="flag: Denmark, in Twemoji style")
parser.add_argument("--out", type=Path, default=Path("best.png"))
arguments = parser.parse_args()
options = {"guidance": 3.0, "decoding": "mixed", "top_p": 0.95}

with Pipeline.from_preset("emoji") as pipeline:
    prompt = Document([arguments.prompt, Blank("image")])
    for event in pipeline.stream(prompt, n=8, seed=0, options=options, rerank="retriever"):
        if event.kind == "retrieved":
            print("looking at", [hit.document.text for hit in event.detail["selection"].hits])
        elif event.kind == "preview":
            event.detail["images"][0].picture.save(arguments.out)  # overwritten as it grows
    answer = event.detail["generation"]

sheet = Image.new("RGB", (8 * 100, 100), "white")
for column, output in enumerate(answer.outputs):
    sheet.paste(output.document.image.picture.resize((96, 96)), (column * 100 + 2, 2))
sheet.save(arguments.out)
print("scores, best first:", [round(score, 3) for score in answer.scores])
print(f"drawn in {arguments.out} in {answer.seconds['generate']:.2f} s")
