"""Pictures that are stored already in another form: encoded anew, resized, or slightly recoloured.

    pipeline.add(read_folder("photos"), near_duplicates=NearDuplicates(on_skip=lambda id, of: print(id, "repeats", of)))

Two pictures are near-duplicates when the signs of their brightness gradients agree (the difference hash of `imagehash`)
and, since drawings and flags often differ in nothing but colour, their colours do, too. What is compared with a new document
are its nearest neighbours in the memory, by the vectors that it has anyway, and what is added together with it; so nothing
is stored besides the documents, and any memory will do. Needs `pip install "racm3[near-duplicates]"`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .crossing import calling
from .document import Document, Image
from .errors import ConfigError, InvalidImage, MemoryCorrupt
from .interfaces import Hit, MemoryStore
from .retrieval import nearest_hits

if TYPE_CHECKING:
    import numpy as np

DISTANCE = 8
BITS = 64
CELLS = 8  # of a picture, both ways, whose mean colours are compared
COLOUR = 40  # of 255: how far a red, green or blue may be off in any cell
CANDIDATES = 16
REMEMBERED = 100_000  # documents whose pictures are not decoded again; about half a kilobyte each

OnNearDuplicate: TypeAlias = Callable[[str, str], None]

logger = logging.getLogger(__name__)


class Look(NamedTuple):
    """What a picture looks like: its difference hash as a number, and the mean colours of its cells, uint8 [192]."""

    gradients: int
    colours: np.ndarray

    def is_near(self, other: Look, distance: int) -> bool:
        if (self.gradients ^ other.gradients).bit_count() > distance:
            return False
        return bool(abs(self.colours.astype(int) - other.colours).max() <= COLOUR)


Looks: TypeAlias = tuple[Look, ...]  # of a document's pictures, in order


class NearDuplicates:
    """Finds the documents of an addition whose pictures are near-duplicates; `Pipeline.add` leaves them out.

    A document repeats another one when each of its pictures is a near-duplicate of the respective picture there, whatever
    their texts say. One without pictures repeats nothing. Crops and mirrored pictures count as new.

    distance: in how many of 64 bits the hashes may differ. candidates: how many neighbours in the memory are looked at;
    the same picture under quite another text may not be among them. on_skip: called with the id of each document that is
    left out, and that of the one which it repeats; by default they are logged. Raises `ConfigError` without imagehash.
    """

    def __init__(
        self, distance: int = DISTANCE, *, candidates: int = CANDIDATES, on_skip: OnNearDuplicate | None = None
    ) -> None:
        if not 0 <= distance < BITS:
            raise ConfigError(f"distance is a number of bits, 0 to {BITS - 1}, not {distance!r}.")
        if candidates < 1:
            raise ConfigError(f"candidates is at least 1, not {candidates!r}.")
        self.distance, self.candidates, self.on_skip = distance, candidates, on_skip or _log
        self._imagehash = _imagehash()
        self._known: dict[tuple[str, frozenset[str]], Looks] = {}

    def new(self, documents: Sequence[Document], vectors: np.ndarray, memory: MemoryStore) -> list[int]:
        """The places of the documents that repeat neither one of the memory nor an earlier one of their own.

        vectors: of the documents, float32 [n, dim]. What the memory has under the same ids is not looked at: what becomes
        of that is for the memory's `add` to say.
        """
        looks = [self._looks(Hit(document)) for document in documents]
        shown = [place for place, look in enumerate(looks) if look]
        if not shown:
            return list(range(len(documents)))
        ids = {document.id for document in documents}
        found = nearest_hits(memory, vectors[shown], k=self.candidates, where=None, exclude=ids)
        stored = dict(zip(shown, found, strict=True))
        kept: list[int] = []
        for place, document in enumerate(documents):
            with calling(memory):  # which may read documents only now
                among = [(hit.id, self._looks(hit)) for hit in stored.get(place, ())]
            among += [(documents[other].id, looks[other]) for other in kept]
            of = next((id for id, others in among if id != document.id and self._repeats(looks[place], others)), None)
            if of is None:
                kept.append(place)
            else:
                self.on_skip(document.id, of)
        return kept

    def _repeats(self, looks: Looks, others: Looks) -> bool:
        return len(looks) == len(others) > 0 and all(
            look.is_near(other, self.distance) for look, other in zip(looks, others, strict=True)
        )

    def _looks(self, hit: Hit) -> Looks:
        key = hit.id, hit.hashes
        if key not in self._known:
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            try:
                self._known[key] = tuple(self._look(image) for image in hit.document.images)
            except MemoryCorrupt as error:  # that it is there must not stop what is new
                logger.warning("%s It is taken to look like nothing else.", error.message)
                self._known[key] = ()
            except InvalidImage:  # memories keep what they are given; what cannot be decoded looks like nothing
                self._known[key] = ()
        return self._known[key]

    def _look(self, image: Image) -> Look:
        import numpy as np
        import PIL.Image

        gradients = self._imagehash.dhash(image.picture, hash_size=CELLS).hash
        cells = image.picture.resize((CELLS, CELLS), PIL.Image.Resampling.BOX)
        return Look(int.from_bytes(np.packbits(gradients).tobytes()), np.asarray(cells, dtype=np.uint8).ravel())


def _imagehash() -> ModuleType:
    try:
        import imagehash
    except ImportError as error:
        raise ConfigError(
            "Near-duplicates are found with imagehash, which is not installed.", 'pip install "racm3[near-duplicates]"'
        ) from error
    return imagehash  # type: ignore[no-any-return]


def _log(id: str, of: str) -> None:
    logger.warning("%s is passed over: it looks like %s", id, of)
