"""The tasks by name: short ways to ask the one operation, filling the blanks of a prompt (method section 5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from .classification import Classification
from .document import Blank, Document, Image, MaskedImage, MaskedText, Text
from .errors import InvalidDocument
from .interfaces import Hit, Where
from .options import Options

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from .blanks import Region
    from .generation import Generation
    from .ranking import Rerank

Picture: TypeAlias = "Image | PIL.Image.Image | np.ndarray | Path"
Context: TypeAlias = "Iterable[Hit | Document | Image | str] | Hit | Document | Image | str"
Example: TypeAlias = "Document | tuple[Picture | str, str]"


class Asking(TypedDict, total=False):
    """The keyword arguments of `generate`, for what is typed by them."""

    k: int | None
    where: Where | None
    context: Context | None
    n: int
    seed: int | None
    options: Options | Mapping[str, Any] | None
    rerank: Rerank | None


def as_image(picture: Picture | str) -> Image:
    """A picture from anything that is one; a str is a path."""
    return picture if isinstance(picture, Image) else Image(picture)


def as_examples(examples: Iterable[Example]) -> list[Document]:
    """Labelled pictures as documents, from (picture, label) pairs."""
    if not isinstance(examples, Iterable):
        raise InvalidDocument(f"Examples are a list, not {type(examples).__name__}.", '[("kite.png", "kite"), ...]')
    return [_as_example(given) for given in examples]


def _as_example(given: Example) -> Document:
    if isinstance(given, Document):
        return given
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InvalidDocument(
            f"An example is a (picture, label) pair or a Document, not {type(given).__name__}.", '("kite.png", "kite")'
        )
    return Document([given[1], as_image(given[0])])


def as_document(given: str | Document | Picture) -> Document:
    """What is searched by, or given as context, as a document: a str is a text. `InvalidDocument` for anything else."""
    if isinstance(given, Document):
        return given
    if isinstance(given, (str, Text, Blank)):
        return Document(given)
    if given is None or isinstance(given, (bool, int, float, list, tuple, dict, set)):
        raise InvalidDocument(
            f"This is a {type(given).__name__}, where a text, a picture or a Document is needed.",
            "A str is a text; a picture is a Path, an Image, a PIL image or an array; both: Document([text, picture]).",
        )
    return Document(as_image(given))


def as_context(context: Context | None) -> list[Hit]:
    """Documents that are given by hand."""
    if isinstance(context, (Hit, Document, Image, str)):
        context = [context]
    if not isinstance(context, (Iterable, type(None))):
        raise InvalidDocument(
            f"A context is made of documents, texts and pictures, not of {type(context).__name__}.", "context=[...]"
        )
    return [item if isinstance(item, Hit) else Hit(as_document(item)) for item in context or ()]


class Tasks(ABC):
    """What a `Pipeline` can be asked by name. Each is a prompt for `generate`, whose arguments they share."""

    @abstractmethod
    def generate(
        self,
        prompts: Any,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Any:
        """See `Pipeline.generate`."""

    def imagine(
        self,
        caption: str,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation:
        """Draw a picture of a caption. Arguments as of `generate`."""
        prompt = Document([caption, Blank("image")])
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)

    def caption(
        self,
        image: Picture | str,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation:
        """Describe a picture (a str is a path) in words. Arguments as of `generate`."""
        prompt = Document([Blank("text"), as_image(image)])
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)

    def edit(
        self,
        image: Picture | str,
        region: Region,
        text: str | None = None,
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation:
        """Draw a region of a picture anew, as a part of what `text` describes. Every other pixel stays as it is.

        region: a box (left, top, right, bottom) in pixels, or a boolean mask [h, w], True where it is to be drawn; see
        `MaskedImage`. The other arguments are those of `generate`.
        """
        hole = MaskedImage(as_image(image), region)
        prompt = Document([hole] if text is None else [text, hole])
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)

    def complete(
        self,
        before: str,
        after: str = "",
        *,
        k: int | None = None,
        where: Where | None = None,
        context: Context | None = None,
        n: int = 1,
        seed: int | None = None,
        options: Options | Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> Generation:
        """Go on with a text, or fill its gap if there is something after it. Arguments as of `generate`."""
        prompt = Document(MaskedText(before, after))
        return self.generate(prompt, k=k, where=where, context=context, n=n, seed=seed, options=options, rerank=rerank)

    @abstractmethod
    def classify(
        self,
        image: Picture | str,
        labels: Sequence[str],
        *,
        examples: Iterable[Example] = (),
        k: int | None = None,
        where: Where | None = None,
        group_size: int = 2,
        seed: int = 0,
    ) -> Classification:
        """See `Pipeline.classify`."""
