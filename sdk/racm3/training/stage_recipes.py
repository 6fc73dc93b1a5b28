"""The recipes of the stages: which tables each has, and what can be seen to be wrong before a document is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..errors import ConfigError, nearest
from .dataset import DataSettings
from .recipe import read_recipe, read_table

if TYPE_CHECKING:
    from .generator import ObjectiveSettings

TABLES = {
    "image-tokenizer": ("data", "model", "trainer"),
    "retriever": ("data", "model", "trainer"),
    "generator": ("data", "tokenizer", "retriever", "neighbours", "model", "masking", "objective", "trainer"),
}

# A key of each kind's [model] that the others lack: who mistakes one recipe for another is told so.
_OWN = {"image-tokenizer": "channels", "retriever": "architecture", "generator": "document_stride"}


def read_stage_recipe(path: Path) -> dict[str, Any]:
    """A recipe file; its relative paths belong to its folder."""
    recipe, here = read_recipe(path), path.resolve().parent
    places = [("data", "path"), ("data", "images"), ("model", "start"), ("model", "perceptual")]
    for key in ("model", "pretrained", "cache_dir"):
        if str(recipe.get("retriever", {}).get(key, "")).startswith((".", "~")):  # other names are no paths
            places.append(("retriever", key))
    for table, key in places:
        if isinstance(value := recipe.get(table, {}).get(key), str):
            # One folder has one name, however it is spelt: another one would be another recipe.
            recipe[table][key] = str((here / Path(value).expanduser()).resolve())
    return recipe


def settings_of(kind: str) -> dict[str, type[BaseModel]]:
    """What the tables of a recipe for a kind of stage hold, but for `[retriever]`, which is as in a pipeline file."""
    from .trainer import TrainerSettings

    if kind == "image-tokenizer":
        from .image_tokenizer import ImageTokenizerSettings

        return {"data": DataSettings, "model": ImageTokenizerSettings, "trainer": TrainerSettings}
    if kind == "retriever":
        from .retriever import RetrieverSettings

        return {"data": DataSettings, "model": RetrieverSettings, "trainer": TrainerSettings}
    from ..generators.cm3.masking import MaskingSettings
    from .generator import GeneratorModelSettings, ObjectiveSettings
    from .neighbours import NeighbourSettings
    from .text_tokenizer import TextSettings

    return {
        "data": DataSettings, "tokenizer": TextSettings, "neighbours": NeighbourSettings,
        "model": GeneratorModelSettings, "masking": MaskingSettings, "objective": ObjectiveSettings,
        "trainer": TrainerSettings,
    }  # fmt: skip


def check_recipe(kind: str, recipe: Mapping[str, Any]) -> None:
    """`ConfigError` for what can be seen to be wrong in a recipe before a document is read."""
    try:
        check_tables(kind, recipe)
        if kind == "generator":
            _check_generator(recipe)
        for table, settings in settings_of(kind).items():
            if (kind, table) != ("generator", "trainer"):  # whose learning rate may be that of the model's size
                read_table(settings, recipe, table)
        if kind == "retriever":
            from .retriever import check_architecture

            check_architecture(recipe["model"]["architecture"])
        for key in ("start", "perceptual"):
            if (folder := recipe.get("model", {}).get(key)) is not None and not Path(folder).is_dir():
                raise ConfigError(f"[model] {key}: there is no folder {folder}.", "Give that of a trained model.")
        data = read_table(DataSettings, recipe, "data")
        if kind == "image-tokenizer" and ":" not in data.source:
            check_size(recipe, data.size)
    except ConfigError as error:
        for other, own in _OWN.items():
            if other != kind and own in recipe.get("model", {}):
                raise ConfigError(
                    f"This is a recipe for {other}: [model] has {own}.", f"racm3 train {other} ..."
                ) from error
        raise


def _check_generator(recipe: Mapping[str, Any]) -> None:
    from .generator import ObjectiveSettings, generator_settings

    model, _ = generator_settings(recipe)
    _ = model.shape
    check_kept(recipe, read_table(ObjectiveSettings, recipe, "objective"))


def check_kept(recipe: Mapping[str, Any], objective: ObjectiveSettings) -> None:
    """`ConfigError` if a model is to be shown more documents than are kept for it."""
    from .neighbours import NeighbourSettings

    keep = read_table(NeighbourSettings, recipe, "neighbours").keep
    if max(objective.k) > keep and objective.context == "retrieved":
        raise ConfigError(
            f"[objective] k has {max(objective.k)}, but of neighbours only {keep} are kept.",
            f"Set [neighbours] keep = {max(objective.k)}.",
        )


def check_tables(kind: str, recipe: Mapping[str, Any]) -> None:
    """`ConfigError` for a kind of stage that there is not, or a table that it does not read."""
    if kind not in TABLES:
        raise ConfigError(f"No stage named '{kind}'. There are: {', '.join(TABLES)}.", nearest(kind, TABLES))
    for table in recipe:
        if table not in TABLES[kind]:
            raise ConfigError(
                f"A recipe for {kind} has no table [{table}]. Tables: {', '.join(TABLES[kind])}.",
                nearest(table, TABLES[kind]),
            )


def check_size(recipe: Mapping[str, Any], size: int) -> None:
    """`ConfigError` unless an image tokenizer is made for pictures of `size` pixels, both ways."""
    from .image_tokenizer import ImageTokenizerSettings

    wanted = read_table(ImageTokenizerSettings, recipe, "model").size
    if wanted != size:
        raise ConfigError(
            f"[model] size is {wanted}, but the pictures have {size} pixels.", f"Set [model] size = {size}."
        )
