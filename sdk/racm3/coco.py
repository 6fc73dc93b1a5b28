"""COCO's captions JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption", "id"}]}."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .collection import OnSkip, check_characters, image_in_folder
from .document import Document
from .errors import ConfigError, InvalidDocument, RACM3Error
from .interfaces import Progress


@dataclass(frozen=True)
class CocoPicture:
    """A picture of the listing. captions: of each its number, or place in the file where it has none, and its text."""

    id: str
    file: str
    captions: list[tuple[str, str]] = field(default_factory=list)


def read_coco(listing: Path, on_skip: OnSkip) -> list[CocoPicture]:
    """The pictures of a listing, in its order, with their captions; the files themselves are not looked at.

    on_skip: called with the place and the error of each entry that is none. Raises `ConfigError` for another kind of file.
    """
    try:
        content = json.loads(listing.read_text(encoding="utf-8-sig"))
        pictures, annotations = content["images"], content["annotations"]
        if not isinstance(pictures, list) or not isinstance(annotations, list):
            raise TypeError("images and annotations are no lists")
    except OSError as error:
        raise ConfigError(f"{listing} cannot be read: {error.strerror or error}.", "Is the path right?") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{listing} is not COCO's captions JSON ({type(error).__name__}: {error}).",
            'Expected {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.',
        ) from error
    captions: dict[str, list[tuple[str, str]]] = {}
    for number, annotation in enumerate(annotations):
        try:
            picture, text = _values(annotation, "image_id", "caption")
            known = annotation.get("id")
            captions.setdefault(picture, []).append((str(number if known is None else known), text.strip()))
        except InvalidDocument as error:
            on_skip(f"annotations[{number}]", error)
    found = []
    for number, entry in enumerate(pictures):
        try:
            picture, file = _values(entry, "id", "file_name")
            found.append(CocoPicture(picture, file, captions.get(picture, [])))
        except InvalidDocument as error:
            on_skip(f"images[{number}]", error)
    return found


def coco_documents(
    listing: Path,
    *,
    images: str | Path | None = None,
    on_skip: OnSkip,
    progress: Progress | None = None,
    decode: bool = True,
    choose: Callable[[int], Sequence[int]] | None = None,
) -> Iterator[Document]:
    """A document for each picture that has captions, with all of them. choose: which of so many; None: all."""
    listed = [(picture.file, [text for _, text in picture.captions if text]) for picture in read_coco(listing, on_skip)]
    named = [(name, texts) for name, texts in listed if texts]
    if not named:
        raise ConfigError(f"{listing} has captions of none of its {len(listed)} pictures.")
    if choose is not None:
        named = [named[i] for i in choose(len(named))]
    root = coco_pictures(listing, images, [name for name, _ in named], "Say where they are: --images FOLDER.")
    for done, (name, texts) in enumerate(named, start=1):
        try:
            image, path = image_in_folder(root, name)
            if decode:
                _ = image.picture  # a broken one is passed over here
            yield Document([*texts, image], id=path, metadata={"path": path})
        except (RACM3Error, OSError) as error:
            on_skip(name, error)
        if progress is not None:
            progress(done, len(named), name)


def coco_pictures(listing: Path, images: str | Path | None, names: Sequence[str], mend: str) -> Path:
    """The folder in which most pictures of a listing are, by their names: `images`, or else beside it, or where COCO has
    them. Raises `ConfigError` where none of them is; mend: what to do then."""
    split = listing.stem.rpartition("_")[2]
    beside = [listing.parent, listing.parent.parent / split, listing.parent / split]
    tried = [Path(images).expanduser()] if images else beside
    found = [sum((folder / name).is_file() for name in names) for folder in tried]
    if any(found):
        return tried[found.index(max(found))]
    places = ", ".join(str(folder) for folder in tried)
    raise ConfigError(f"None of the {len(names)} pictures of {listing} is in {places}.", mend)


def _values(entry: object, *names: str) -> list[str]:
    """Numbers and texts of an object, all as texts; `InvalidDocument` where one of them is neither."""
    if not isinstance(entry, Mapping):
        raise InvalidDocument(f"It is no object, but {entry!r:.60}.")
    for name in names:
        if not isinstance(entry.get(name), (str, int)):
            raise InvalidDocument(f"Its {name} is {entry.get(name)!r:.60}.", "It is a whole number or a text.")
    check_characters(dict(entry))
    return [str(entry[name]) for name in names]
