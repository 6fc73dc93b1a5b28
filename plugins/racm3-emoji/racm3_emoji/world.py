"""The emoji world: every emoji is an entity, drawn by several vendors, each in a style of its own.

Names come from emojibase, drawings from icon sets; both are joined by code point (or, for flags, by ISO code),
split by entity, rasterised once, and kept in the user's cache. Nothing here is random.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import resvg_py
from PIL import Image

from racm3.interfaces import Progress
from racm3_emoji import sources

SIZE = 64  # pixels, both ways
VERSION = 3  # raise it whenever the same sources would give another world

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Drawing:
    """One vendor's picture of one emoji."""

    id: str  # the set and the code point ("noto/1f9d1-200d-1f692"), or, in the flag sets, the icon ("flagpack/bt")
    name: str  # emojibase's label: "banjo", "flag: Bhutan"
    style: str
    text: str  # what a prompt says: "banjo, in Noto style"
    entity: str  # see entity_key
    hexcode: str  # lower case, without fe0f
    group: str  # emojibase's: "animals-nature", "flags", ...
    keywords: tuple[str, ...]
    split: Split
    base_form: bool  # False for skin-tone and gender variants, and for all but one member of an entity


# --- entities -------------------------------------------------------------------------------------------------

_SKIN_TONE = re.compile(r"-1f3f[b-f]\b")
# The gender signs, and the arrow of "facing right": a mirrored drawing gives its original away just as well.
_VARIANT_SIGN = re.compile(r"-200d-(2640|2642|27a1)\b")
_NEUTRAL = {
    "1f468": "1f9d1", "1f469": "1f9d1",  # man, woman: person
    "1f466": "1f9d2", "1f467": "1f9d2",  # boy, girl: child
    "1f474": "1f9d3", "1f475": "1f9d3",  # old man, old woman: older person
    "1f934": "1fac5", "1f478": "1fac5",  # prince, princess: person with crown
    "1f930": "1fac4", "1fac3": "1fac4",  # pregnant woman, man: person
    "1f57a": "1f483",  # man dancing, woman dancing
    "1f6b9": "1f6bb", "1f6ba": "1f6bb",  # men's room, women's room: restroom
}  # fmt: skip
_SAME_ENTITY = {
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # territories that fly the very flag of another: Heard & McDonald, Australia's
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # U.S. Outlying Islands: United States
    "1f1e7-1f1fb": "1f1f3-1f1f4", "1f1f8-1f1ef": "1f1f3-1f1f4",  # Bouvet Island, Svalbard & Jan Mayen: Norway
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # Diego Garcia: British Indian Ocean Territory
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Ceuta & Melilla: Spain
    "1f1e8-1f1f5": "1f1eb-1f1f7", "1f1f2-1f1eb": "1f1eb-1f1f7",  # Clipperton Island, St. Martin: France
    "1f385": "1f9d1-200d-1f384", "1f936": "1f9d1-200d-1f384",  # Santa, Mrs. Claus: Mx Claus
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # woman and man, men, women: people holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",  # kisses
    "1f9d1-200d-2764-200d-1f9d1": "1f491",  # couples with heart
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",  # people with bunny ears, of different skin tones
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",  # people wrestling, likewise
    "1faf1-200d-1faf2": "1f91d",  # handshake, likewise
}  # fmt: skip
_FAMILY = re.compile(r"1f9d[12](-200d-1f9d[12])+")


def normal_hexcode(hexcode: str) -> str:
    """Lower case, without the variation selector fe0f, which the sources do not agree about."""
    return hexcode.lower().replace("-fe0f", "")


def entity_key(hexcode: str) -> str:
    """The code point of the thing itself: one key for all skin tones and genders of an emoji, and for one flag.

    Two drawings of one entity must never lie on different sides of the split, or the test would be given away.
    """
    key = _VARIANT_SIGN.sub("", _SKIN_TONE.sub("", normal_hexcode(hexcode)))
    key = "-".join(_NEUTRAL.get(point, point) for point in key.split("-"))
    if _FAMILY.fullmatch(key):
        return "1f46a"
    return _SAME_ENTITY.get(key, key)


def split_of(entity: str) -> Split:
    """The entity's side of the split: 80 % train, 10 % validation, 10 % test, by its SHA-256 alone."""
    bucket = int.from_bytes(hashlib.sha256(entity.encode()).digest()[:8]) % 10
    return "test" if bucket == 9 else "validation" if bucket == 8 else "train"


def flag_code(hexcode: str) -> str | None:
    """The ISO 3166 code that a flag spells ("bt", "gb-eng"), or None if it spells none."""
    points = [int(point, 16) for point in normal_hexcode(hexcode).split("-")]
    if len(points) == 2 and all(0x1F1E6 <= point <= 0x1F1FF for point in points):
        return "".join(chr(point - 0x1F1E6 + ord("a")) for point in points)
    if points[0] == 0x1F3F4 and points[-1] == 0xE007F:  # a black flag, then tag characters
        letters = "".join(chr(point - 0xE0000) for point in points[1:-1])
        return f"{letters[:2]}-{letters[2:]}"
    return None


# --- the join -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """A style, its icon set, and how that set names an icon: by code point, by another set's names, or by ISO code."""

    name: str
    source: sources.Source
    names_of: sources.Source | None = None  # whose chars.json names the icons; None: the icons are flags
    flag_name: str = "{code}"
    flag_exceptions: Mapping[str, str | None] = field(default_factory=dict)  # by ISO code; None: the set draws another

    @property
    def prefix(self) -> str:
        return self.source.name.rsplit("/", 1)[-1]

    def flag_icon(self, hexcode: str) -> str | None:
        """The icon's name for an emoji flag; None if the emoji spells no ISO code, or the set draws it wrongly."""
        code = flag_code(hexcode)
        return None if code is None else self.flag_exceptions.get(code, self.flag_name.format(code=code))


STYLES = (
    Style("Fluent", sources.FLUENT, names_of=sources.FLUENT),
    Style("Noto", sources.NOTO, names_of=sources.NOTO),
    Style("Noto v1", sources.NOTO_V1, names_of=sources.NOTO),  # it has no chars.json, but shares the names
    Style("Twemoji", sources.TWEMOJI, names_of=sources.TWEMOJI),
    Style("Flag Icons 4:3", sources.FLAG_ICONS, flag_name="{code}-4x3"),
    Style("Flag Icons 1:1", sources.FLAG_ICONS, flag_name="{code}-1x1"),
    # These four are languages there: Arabic, Interlingue, Ido, Latin.
    Style("Circle Flags", sources.CIRCLE_FLAGS, flag_exceptions=dict.fromkeys(("ar", "ie", "io", "la"))),
    Style("Flagpack", sources.FLAGPACK, flag_exceptions={"gb": "gb-ukm"}),  # its "gb" is England's
    Style("CoreUI", sources.COREUI, flag_exceptions={"gn": None}),  # Equatorial Guinea's
)


@dataclass(frozen=True)
class Emoji:
    """What emojibase says about one emoji, with its place in the split."""

    name: str
    hexcode: str
    entity: str
    group: str
    keywords: tuple[str, ...]
    base_form: bool


def emojis(data: Iterable[Mapping[str, Any]], groups: Mapping[str, str]) -> list[Emoji]:
    """All emojis of emojibase's `data.json`, skin-tone variants included, each entity's base form first.

    `groups` maps emojibase's group numbers to their keys. Left out: components (skin tones, hair) and what has no
    group (regional indicators).
    """
    members: dict[str, list[Emoji]] = defaultdict(list)
    for entry in sorted(data, key=lambda entry: entry.get("order", 0)):
        group = groups.get(str(entry.get("group")))
        if group is None or group == "component":
            continue
        entity = entity_key(entry["hexcode"])
        for form in (entry, *entry.get("skins", ())):
            keywords = tuple(form.get("tags") or entry.get("tags", ()))
            members[entity].append(
                Emoji(form["label"], normal_hexcode(form["hexcode"]), entity, group, keywords, base_form=False)
            )
    ordered = []
    for entity, forms in members.items():
        base = next((form for form in forms if form.hexcode == entity), forms[0])
        ordered.append(dataclasses.replace(base, base_form=True))
        ordered.extend(form for form in forms if form is not base)
    return ordered


def icon_names(chars: Mapping[str, str], aliases: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of each code point's icon in a set: that of its chars.json first, then the set's aliases of it."""
    others: dict[str, list[str]] = defaultdict(list)
    for alias, target in aliases.items():
        if _is_plain(target):
            others[target["parent"]].append(alias)
    return {normal_hexcode(point): [name, *others[name]] for point, name in chars.items()}


def _is_plain(alias: Mapping[str, Any]) -> bool:
    """Whether the alias is just another name. Fluent also has mirrored ones, which show another emoji: left out."""
    return alias.keys() == {"parent"}


def icon_svg(icon_set: Mapping[str, Any], name: str) -> str | None:
    """The icon, or the one that it is an alias of, as a square SVG of SIZE pixels; None if the set lacks it.

    An icon that is not square is centred, not stretched.
    """
    aliases = icon_set.get("aliases", {})
    while name in aliases and _is_plain(aliases[name]):
        name = aliases[name]["parent"]
    icon = icon_set["icons"].get(name)
    if icon is None:
        return None
    left, top, width, height = (
        icon.get(key, icon_set.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # iconify's defaults
    )
    side = max(width, height)
    # The inner svg clips what the drawing has outside its own box, which the padding would otherwise show.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{SIZE}" height="{SIZE}" viewBox="0 0 {side} {side}">'
        f'<svg x="{(side - width) / 2}" y="{(side - height) / 2}" width="{width}" height="{height}"'
        f' viewBox="{left} {top} {width} {height}">{icon["body"]}</svg></svg>'
    )


def join(emojis: Sequence[Emoji], read: Callable[[sources.Source, str], Any]) -> Iterator[tuple[Drawing, str]]:
    """Every drawing of every style with its SVG, base forms before their variants.

    `read(source, member)` gives a parsed JSON file of a source.
    """
    for style in STYLES:
        icon_set = read(style.source, "icons.json")
        names: dict[str, list[str]] = {}
        if style.names_of is not None:
            aliases = read(style.names_of, "icons.json").get("aliases", {})
            names = icon_names(read(style.names_of, "chars.json"), aliases)
        for emoji in emojis:
            if style.names_of is not None:
                local_id, candidates = emoji.hexcode, names.get(emoji.hexcode, [])
                if style.names_of is not style.source:
                    # Here only real names count: Noto v1's alias "cricket" is the game, Noto's "cricket" the insect.
                    candidates = [name for name in candidates if name in icon_set["icons"]]
            elif flag := style.flag_icon(emoji.hexcode):
                local_id, candidates = flag, [flag]
            else:
                continue
            svg = next((svg for name in candidates if (svg := icon_svg(icon_set, name))), None)
            if svg is not None:
                yield _drawing(emoji, style, f"{style.prefix}/{local_id}"), svg


def _drawing(emoji: Emoji, style: Style, id: str) -> Drawing:
    text = f"{emoji.name}, in {style.name} style"
    return Drawing(id=id, style=style.name, text=text, split=split_of(emoji.entity), **dataclasses.asdict(emoji))


def rasterise(svg: str) -> np.ndarray:
    """The SVG on white, as uint8 RGB of shape [SIZE, SIZE, 3]."""
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


# --- the world ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The drawings and their pixels, uint8 RGB of shape [n, SIZE, SIZE, 3], in the same order; read-only."""

    drawings: list[Drawing]
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.drawings)

    def select(
        self,
        split: str | None = None,
        base_form: bool | None = None,
        style: str | None = None,
        group: str | None = None,
    ) -> np.ndarray:
        """The indices (int64, ascending) of the drawings that have all the given values; None: any value."""
        wanted = {"split": split, "base_form": base_form, "style": style, "group": group}
        wanted = {field: value for field, value in wanted.items() if value is not None}
        return np.array(
            [i for i, drawing in enumerate(self.drawings) if all(getattr(drawing, f) == v for f, v in wanted.items())],
            dtype=np.int64,
        )

    def image(self, index: int) -> Image.Image:
        """The drawing as an RGB picture of SIZE x SIZE."""
        return Image.fromarray(np.asarray(self.pixels[index]))

    def to_png_bytes(self, index: int) -> bytes:
        """The drawing as a PNG file."""
        buffer = io.BytesIO()
        self.image(index).save(buffer, format="PNG")
        return buffer.getvalue()

    def by_entity(self) -> dict[str, list[int]]:
        """The indices of each entity's drawings, ascending."""
        indices: dict[str, list[int]] = defaultdict(list)
        for index, drawing in enumerate(self.drawings):
            indices[drawing.entity].append(index)
        return dict(indices)


def build(cache: Path | None = None, progress: Progress | None = None) -> World:
    """Open the prepared world in `cache` (default: the user's cache folder), preparing it first if need be.

    Preparing fetches some 16 MB with npm and takes well under a minute; opening takes a moment and maps the pixels
    from disk. `progress(done, total, what)` is called now and then. Raises sources.SourceError if a source cannot
    be had.
    """
    cache = cache or sources.default_cache()
    folder = cache / f"world-{_fingerprint()}"
    if not folder.is_dir():
        _prepare(cache, folder, progress or (lambda done, total, what: None))
    with (folder / "drawings.jsonl").open(encoding="utf-8") as lines:
        drawings = [Drawing(**{**row, "keywords": tuple(row["keywords"])}) for row in map(json.loads, lines)]
    return World(drawings, np.load(folder / "drawings.npy", mmap_mode="r", allow_pickle=False))


def _prepare(cache: Path, folder: Path, progress: Progress) -> None:
    """Fetch, join, render, and put the world into `folder` in one step."""
    tarballs = {}
    for done, source in enumerate(sources.SOURCES):
        progress(done, len(sources.SOURCES), f"fetching {source.name}")
        tarballs[source] = sources.fetch(source, cache / "packages")

    def read(source: sources.Source, member: str) -> Any:
        return sources.read_json(tarballs[source], member)

    groups = read(sources.EMOJIBASE, "meta/groups.json")["groups"]
    joined = list(join(emojis(read(sources.EMOJIBASE, "en/data.json"), groups), read))
    drawings: list[Drawing] = []
    pixels = []
    seen = set()  # some vendors draw a variant exactly like its base form: that is no second drawing
    for done, (drawing, svg) in enumerate(joined):
        if done % 100 == 0:
            progress(done, len(joined), "drawing")
        picture = rasterise(svg)
        mark = (drawing.entity, drawing.style, hashlib.sha256(picture.tobytes()).digest())
        if mark not in seen:
            seen.add(mark)
            drawings.append(drawing)
            pixels.append(picture)
    progress(len(joined), len(joined), "drawing")
    with tempfile.TemporaryDirectory(dir=cache, prefix=".world-") as temporary:
        np.save(Path(temporary) / "drawings.npy", np.stack(pixels), allow_pickle=False)
        with (Path(temporary) / "drawings.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n" for d in drawings)
        Path(temporary).chmod(0o755)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster, which is as good
                raise


def _fingerprint() -> str:
    table = json.dumps([dataclasses.astuple(source) for source in sources.SOURCES])
    return hashlib.sha256(f"{VERSION} {SIZE} {table}".encode()).hexdigest()[:12]
