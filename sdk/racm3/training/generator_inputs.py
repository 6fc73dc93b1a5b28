"""What a generator is trained with: documents as tokens, neighbours and tokenizers, prepared in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..interfaces import Progress, Retriever
from .data import VARIANTS, Corpus, DocumentRows
from .hardware import device_for
from .recipe import read_table
from .run_files import reading
from .stage_recipes import check_kept

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..generators.cm3.image_tokenizer import ImageTokenizer
    from .documents import PreparedDocuments
    from .generator import ObjectiveSettings
    from .runs import Run

# The stage whose image tokenizer has the tokens of the run's own, and the better pictures.
DECODER = "decoder"


@dataclass(frozen=True)
class GeneratorInputs:
    """What a generator is trained with. documents.held_out: those that figures are taken on, not all there may be.
    image_tokenizer: with the better decoder, where the run has one."""

    documents: PreparedDocuments
    text_tokenizer: Tokenizer
    image_tokenizer: ImageTokenizer


def check_trained(run: Run, recipe: Mapping[str, Any]) -> None:
    """`WeightsNotFound` for a model of the run that a generator's recipe needs, and that is not trained yet."""
    from .generator import ObjectiveSettings

    run.model("image-tokenizer")
    if _retrieves(read_table(ObjectiveSettings, recipe, "objective")) and not recipe.get("retriever"):
        run.model("retriever")


def _retrieves(objective: ObjectiveSettings) -> bool:
    return max(objective.k) > 0 and objective.context == "retrieved"


def generator_inputs(
    run: Run, recipe: Mapping[str, Any], corpus: Corpus, *, progress: Progress | None = None
) -> GeneratorInputs:
    """What a generator's recipe is trained with, prepared where it is not yet."""
    from ..generators.cm3.image_tokenizer import ImageTokenizer
    from .processes import main_process_first

    with main_process_first(recipe):
        text_tokenizer = _text_tokenizer(run, recipe, corpus)
        device = device_for(recipe.get("trainer", {}).get("device", "auto"))
        image_tokenizer = ImageTokenizer.load(run.model("image-tokenizer"), device=device)
        prepared = _prepared(run, recipe, corpus, text_tokenizer, image_tokenizer, progress)
    image_tokenizer.model.to("cpu")  # where the codebook is looked at; the room is for the generator now
    measured = replace(prepared, held_out=corpus.measured)
    return GeneratorInputs(measured, text_tokenizer, _with_decoder(run, image_tokenizer))


def _with_decoder(run: Run, image_tokenizer: ImageTokenizer) -> ImageTokenizer:
    """The same tokens, painted by the decoder that was trained further, where the run has one."""
    import torch

    from .image_tokenizer import PAINTING

    if not (run.folder / DECODER / "model").is_dir():
        return image_tokenizer
    better = type(image_tokenizer).load(run.model(DECODER))
    weights, others = (one.model.state_dict() for one in (image_tokenizer, better))
    fixed = [name for name in weights if not name.startswith(PAINTING)]
    if not all(name in others and torch.equal(weights[name], others[name]) for name in fixed):
        raise CheckpointError(
            f"{run.folder / DECODER} knows other tokens than {run.folder / 'image-tokenizer'}.",
            "Train it with [model] start = that one's model and trained = 'decoder', or delete it.",
        )
    return better


def decoder_of(run: Run) -> str | None:
    """The fingerprint of the decoder that was trained further; None where the run has none."""
    from ..generators.cm3.model import fingerprint

    return fingerprint(run.model(DECODER)) if (run.folder / DECODER / "model").is_dir() else None


def _text_tokenizer(run: Run, recipe: Mapping[str, Any], corpus: Corpus) -> Tokenizer:
    """The text tokenizer of all generators of a run, learnt from the training texts by the first of them."""
    from ..generators.cm3.vocabulary import load_text_tokenizer
    from .text_tokenizer import TextSettings, train_text_tokenizer

    path = run.prepared / "tokenizer.json"
    if path.is_file():
        with reading(path, "Delete it: it is learnt again from the same texts."):
            return load_text_tokenizer(path)
    texts = (corpus.data.texts[row] for row in corpus.training)
    return train_text_tokenizer(texts, read_table(TextSettings, recipe, "tokenizer").vocabulary, path)


def _prepared(
    run: Run, recipe: Mapping[str, Any], corpus: Corpus, text_tokenizer: Tokenizer, image_tokenizer: ImageTokenizer,
    progress: Progress | None,
) -> PreparedDocuments:  # fmt: skip
    """Documents as tokens, with neighbours where the recipe retrieves; prepared once a run."""
    from ..generators.cm3.model import fingerprint
    from .documents import prepare_documents
    from .generator import ObjectiveSettings
    from .neighbours import NeighbourSettings, prepare_neighbours
    from .text_tokenizer import TextSettings

    objective = read_table(ObjectiveSettings, recipe, "objective")
    made_from = {"image tokenizer": fingerprint(run.model("image-tokenizer")), "documents": corpus.digest}
    prepared = prepare_documents(
        corpus.data, corpus.held_out, text_tokenizer, image_tokenizer, variants=VARIANTS if objective.variants else 1,
        longest=read_table(TextSettings, recipe, "tokenizer").longest, path=run.prepared / "images.npy",
        made_from=made_from, progress=progress,
    )  # fmt: skip
    if not _retrieves(objective):
        return prepared
    settings = read_table(NeighbourSettings, recipe, "neighbours")
    check_kept(recipe, objective)
    found = prepare_neighbours(
        DocumentRows(corpus.data), corpus.data.groups(), corpus.training, corpus.held_out, retriever_of(run, recipe),
        settings, folder=run.prepared, digest=corpus.digest, progress=progress,
    )  # fmt: skip
    return replace(prepared, neighbours=found)


def retriever_of(run: Run, recipe: Mapping[str, Any]) -> Retriever:
    """The retriever that `[retriever]` names, as in a pipeline file; without that table, the run's own."""
    from ..registry import registry

    settings = dict(recipe.get("retriever") or {"name": "clip", "model": str(run.model("retriever"))})
    made: Retriever = registry().create(Retriever, settings.pop("name", "clip"), settings)
    return made
