"""Search, draw and caption with the emoji preset: python examples/01_quickstart.py

Nothing was trained on the flag of Denmark, and the memory lacks Twemoji's: the model looks at other vendors' flags.
"""

import argparse
from pathlib import Path

from racm3 import Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--prompt", default="flag: Denmark, in Twemoji style")
parser.add_argument("--out", type=Path, default=Path("quickstart.png"))
arguments = parser.parse_args()

with Pipeline.from_preset("emoji") as pipeline:
    for hit in pipeline.search("a musical instrument", k=3):
        print(f"{hit.score:.3f}  {hit.document.text}")

    drawing = pipeline.imagine(arguments.prompt, seed=0)
    drawing.image.picture.resize((256, 256)).save(arguments.out)
    print(f"\n{arguments.prompt!r} is in {arguments.out}, grounded on:")
    for hit in drawing.hits:
        print(f"{hit.score:.3f}  {hit.document.text}")

    caption = pipeline.caption(drawing.image, options={"temperature": 0})
    print(f"\nIts caption: {caption.text!r}")
