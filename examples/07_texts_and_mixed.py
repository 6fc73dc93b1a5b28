"""Texts, and texts with pictures: python examples/07_texts_and_mixed.py [--out mixed.png]

A text is continued, a gap in a text is filled, and a beginning becomes a caption with its picture. All three are
grounded on what the memory holds; this small model has read nothing but names of emoji.
"""

import argparse
from pathlib import Path

from racm3 import Blank, Document, MaskedText, Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("mixed.png"))
arguments = parser.parse_args()
writing = {"max_text_tokens": 16, "temperature": 0.3, "no_repeat": 3}

with Pipeline.from_preset("emoji") as pipeline:
    continued = pipeline.complete("flag: Den", seed=0, options=writing)
    print("continued:", continued.text)

    filled = pipeline.complete("musical", ", in Noto style", n=8, seed=0, options=writing, rerank="perplexity")
    print("filled:", [output.document.text for output in filled.outputs[:3]])

    prompt = Document([MaskedText("flag: Nor"), Blank("image")])
    mixed = pipeline.generate(prompt, seed=0, options=writing)
    mixed.image.picture.resize((256, 256)).save(arguments.out)
    print(f"mixed: {mixed.text!r}, drawn in {arguments.out}")
