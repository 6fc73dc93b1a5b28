"""All three models, trained on a folder of pictures: python examples/09_train_on_your_pictures.py [PICTURES] [RUN]

At toy size, in about a minute: the recipes in examples/recipes say what to change. The same on the command line:
racm3 train image-tokenizer RECIPE.toml --run RUN, then retriever, then generator; racm3 train resume RUN/generator.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from racm3.cli import main

RECIPES = Path(__file__).parent / "recipes"
COLOURS, SHAPES = ("red", "green", "blue", "orange", "brown", "black"), ("rectangle", "ellipse", "line")


def example_folder(folder: Path) -> Path:
    folder.mkdir()
    for colour in COLOURS:
        for shape in SHAPES:
            picture = Image.new("RGB", (32, 32), "white")
            getattr(ImageDraw.Draw(picture), shape)((4, 6, 27, 25), fill=colour)
            picture.save(folder / f"{colour}-{shape}.png")
            (folder / f"{colour}-{shape}.txt").write_text(f"a {colour} {shape}")
    return folder


with tempfile.TemporaryDirectory() as scratch:
    pictures = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else example_folder(Path(scratch) / "pictures")
    run = sys.argv[2] if len(sys.argv) > 2 else f"{scratch}/run"
    for stage in ("image-tokenizer", "retriever", "generator"):
        recipe = Path(scratch) / f"{stage}.toml"
        recipe.write_text((RECIPES / recipe.name).read_text().replace('"pictures"', f'"{pictures}"'))
        try:
            main(["train", stage, str(recipe), "--run", run])
        except SystemExit as finished:
            assert not finished.code
