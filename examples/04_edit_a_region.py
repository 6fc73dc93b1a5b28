"""Draw one region of a picture anew: python examples/04_edit_a_region.py [--out edited.png]

The left half of an unseen flag is hidden and drawn again, looking at other vendors' flags. From left to right: the flag,
what the model was shown of it, and what it made of it. Outside of the region every pixel is the original's.
"""

import argparse
from pathlib import Path

from PIL import Image

from racm3 import Pipeline
from racm3_emoji.bundle import held_out_documents

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("edited.png"))
arguments = parser.parse_args()

flag = next(document for document in held_out_documents() if document.metadata["name"] == "flag: Denmark")
width, height = flag.image.size

with Pipeline.from_preset("emoji") as pipeline:
    region = (0, 0, width // 2, height)
    edited = pipeline.edit(
        flag.image, region, flag.texts[0], where={"group": "flags"}, seed=0, options={"guidance": 2.0}
    )

shown = edited.prompt.blanks[0].shown
sheet = Image.new("RGB", (3 * 200, 200), "white")
for column, picture in enumerate((flag.image, shown, edited.image)):
    sheet.paste(picture.picture.resize((192, 192)), (column * 200 + 4, 4))
sheet.save(arguments.out)
print(f"{flag.texts[0]!r} is in {arguments.out}, grounded on {[hit.document.text for hit in edited.hits]}")
