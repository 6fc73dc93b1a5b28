"""The emoji world: what is one entity, where it lands, and how names and drawings find each other. No network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")
from racm3_emoji import sources, world

RED_BOX = '<path fill="#f00" d="M0 0h{w}v{h}h-{w}z"/>'


# --- entities and the split


@pytest.mark.parametrize(
    ("hexcode", "entity"),
    [
        ("1FA95", "1fa95"),
        ("2764-FE0F", "2764"),
        ("1F44B-1F3FD", "1f44b"),
        ("1F575-FE0F-200D-2640-FE0F", "1f575"),  # woman detective
        ("1F9D4-1F3FF-200D-2642-FE0F", "1f9d4"),  # man with beard, dark skin
        ("1F468-1F3FB-200D-1F692", "1f9d1-200d-1f692"),  # man firefighter
        ("1F469-200D-1F692", "1f9d1-200d-1f692"),
        ("1F6B6-200D-2640-FE0F-200D-27A1-FE0F", "1f6b6"),  # woman walking, facing right
        ("1F467", "1f9d2"),
        ("1F475-1F3FC", "1f9d3"),
        ("1F478", "1fac5"),
        ("1F930", "1fac4"),
        ("1F936-1F3FE", "1f9d1-200d-1f384"),  # Mrs. Claus
        ("1F57A", "1f483"),
        ("1F46C", "1f9d1-200d-1f91d-200d-1f9d1"),
        ("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF", "1f9d1-200d-1f91d-200d-1f9d1"),
        ("1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1f48f"),
        ("1F468-1F3FB-200D-2764-FE0F-200D-1F468-1F3FC", "1f491"),
        ("1F468-200D-1F469-200D-1F467-200D-1F466", "1f46a"),
        ("1F9D1-200D-1F9D2", "1f46a"),
        ("1FAF1-1F3FB-200D-1FAF2-1F3FC", "1f91d"),
    ],
)
def test_all_variants_share_one_entity(hexcode: str, entity: str) -> None:
    assert world.entity_key(hexcode) == entity


@pytest.mark.parametrize("hexcode", ["2640", "1f3f3-200d-26a7", "1f9d1", "1f1e7-1f1f9", "1f642-200d-2194", "1f3fb"])
def test_what_has_no_variants_is_its_own_entity(hexcode: str) -> None:
    assert world.entity_key(hexcode) == hexcode


def test_territories_that_fly_the_same_flag_are_one_entity_and_other_flags_are_not() -> None:
    norway, svalbard, iceland = "1f1f3-1f1f4", "1f1f8-1f1ef", "1f1ee-1f1f8"
    assert world.entity_key(svalbard) == world.entity_key(norway) != world.entity_key(iceland)


def test_the_split_of_an_entity_never_changes() -> None:
    # Written down, not computed: models were trained on this split.
    expected = {
        "1f600": "validation",
        "1f609": "test",
        "1fa95": "train",
        "1f9d1-200d-1f692": "train",
        "1f1e7-1f1f9": "validation",
    }
    assert {entity: world.split_of(entity) for entity in expected} == expected


def test_the_split_is_80_10_10() -> None:
    sides = [world.split_of(f"{point:x}") for point in range(5000)]
    shares = {side: sides.count(side) / len(sides) for side in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)


@pytest.mark.parametrize(
    ("hexcode", "code"),
    [
        ("1F1E7-1F1F9", "bt"),
        ("1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", "gb-eng"),
        ("1F3F4", None),
        ("1F3F4-200D-2620-FE0F", None),
        ("1F1E6", None),
    ],
)
def test_flags_spell_their_iso_code(hexcode: str, code: str | None) -> None:
    assert world.flag_code(hexcode) == code


# --- the join, on a tiny synthetic source

GROUPS = {"1": "people-body", "2": "component", "7": "objects", "9": "flags"}
DATA = [
    {"label": "man firefighter", "hexcode": "1F468-200D-1F692", "order": 1, "group": 1, "tags": ["fire"]},
    {
        "label": "firefighter", "hexcode": "1F9D1-200D-1F692", "order": 2, "group": 1, "tags": ["fire", "truck"],
        "skins": [{"label": "firefighter: dark skin tone", "hexcode": "1F9D1-1F3FF-200D-1F692"}],
    },
    {"label": "banjo", "hexcode": "1FA95", "order": 3, "group": 7, "tags": ["music"]},
    {"label": "prince", "hexcode": "1F934", "order": 5, "group": 1},
    {"label": "princess", "hexcode": "1F478", "order": 4, "group": 1},
    {"label": "light skin tone", "hexcode": "1F3FB", "order": 6, "group": 2},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
    {"label": "flag: Bhutan", "hexcode": "1F1E7-1F1F9", "order": 7, "group": 9},
    {"label": "flag: United Kingdom", "hexcode": "1F1EC-1F1E7", "order": 8, "group": 9},
    {"label": "flag: Laos", "hexcode": "1F1F1-1F1E6", "order": 9, "group": 9},
    {"label": "cricket", "hexcode": "1F997", "order": 10, "group": 7},
]  # fmt: skip


def icon_set(*names: str, width: int = 8, height: int = 8, **aliases: dict[str, Any]) -> dict[str, Any]:
    body = RED_BOX.format(w=width, h=height)
    return {"icons": {name: {"body": body} for name in names}, "aliases": aliases, "width": width, "height": height}


FILES: dict[tuple[sources.Source, str], Any] = {
    (sources.FLUENT, "icons.json"): icon_set("banjo-left", banjo={"parent": "banjo-left", "hFlip": True}),
    (sources.FLUENT, "chars.json"): {"1fa95": "banjo"},
    (sources.NOTO, "icons.json"): icon_set("banjo", "cook", "cook-dark", lute={"parent": "banjo"}),
    (sources.NOTO, "chars.json"): {
        "1fa95": "banjo", "1f9d1-200d-1f692": "cook", "1f9d1-1f3ff-200d-1f692": "cook-dark", "1f997": "cricket",
    },
    (sources.NOTO_V1, "icons.json"): icon_set("lute", "cricket-game", cricket={"parent": "cricket-game"}),
    (sources.TWEMOJI, "icons.json"): icon_set("prince", "bhutan"),
    (sources.TWEMOJI, "chars.json"): {"1f934": "prince", "1f1e7-1f1f9": "bhutan"},
    (sources.FLAG_ICONS, "icons.json"): icon_set("bt-4x3", "druk-1x1", **{"bt-1x1": {"parent": "druk-1x1"}}),
    (sources.CIRCLE_FLAGS, "icons.json"): icon_set("bt", "la"),
    (sources.FLAGPACK, "icons.json"): icon_set("gb", "gb-ukm"),
    (sources.COREUI, "icons.json"): icon_set(),
}  # fmt: skip


@pytest.fixture
def emojis() -> dict[str, world.Emoji]:
    return {emoji.name: emoji for emoji in world.emojis(DATA, GROUPS)}


@pytest.fixture
def drawings(emojis: dict[str, world.Emoji]) -> dict[str, world.Drawing]:
    joined = world.join(list(emojis.values()), lambda source, member: FILES[source, member])
    return {drawing.id: drawing for drawing, _ in joined}


def test_components_and_regional_indicators_are_left_out(emojis: dict[str, world.Emoji]) -> None:
    assert not {"light skin tone", "regional indicator A"} & emojis.keys()


def test_the_base_form_is_the_entity_itself_or_else_its_first_member(emojis: dict[str, world.Emoji]) -> None:
    bases = [emoji.name for emoji in emojis.values() if emoji.base_form and emoji.group == "people-body"]
    assert bases == ["firefighter", "princess"]  # princess comes before prince in emojibase's order


def test_a_skin_tone_variant_has_its_own_name_and_its_parents_keywords(emojis: dict[str, world.Emoji]) -> None:
    variant = emojis["firefighter: dark skin tone"]
    assert (variant.entity, variant.keywords) == ("1f9d1-200d-1f692", ("fire", "truck"))


def test_drawings_join_by_code_point_by_name_and_by_iso_code(drawings: dict[str, world.Drawing]) -> None:
    assert drawings.keys() == {
        "noto/1f9d1-200d-1f692", "noto/1f9d1-1f3ff-200d-1f692", "noto/1fa95",
        "noto-v1/1fa95",  # by Noto's other name for it
        "twemoji/1f934", "twemoji/1f1e7-1f1f9",
        "flag/bt-4x3", "flag/bt-1x1", "circle-flags/bt", "flagpack/gb-ukm",
    }  # fmt: skip


def test_another_sets_name_never_matches_an_alias(drawings: dict[str, world.Drawing]) -> None:
    assert "noto-v1/1f997" not in drawings  # its "cricket" is the game, not the insect


def test_a_mirrored_alias_is_not_taken_for_the_drawing(drawings: dict[str, world.Drawing]) -> None:
    assert "fluent-emoji-flat/1fa95" not in drawings


def test_a_drawing_knows_its_prompt_and_its_place(drawings: dict[str, world.Drawing]) -> None:
    assert drawings["flag/bt-4x3"] == world.Drawing(
        id="flag/bt-4x3", name="flag: Bhutan", style="Flag Icons 4:3", text="flag: Bhutan, in Flag Icons 4:3 style",
        entity="1f1e7-1f1f9", hexcode="1f1e7-1f1f9", group="flags", keywords=(), split=world.split_of("1f1e7-1f1f9"),
        base_form=True,
    )  # fmt: skip


# --- pictures


def test_a_wide_picture_is_centred_on_white_and_not_stretched() -> None:
    pixels = world.rasterise(world.icon_svg(icon_set("bt", width=32, height=24), "bt") or "")
    red = (pixels == (255, 0, 0)).all(axis=-1)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert red[8:56].all() and (pixels[:8] == 255).all() and (pixels[56:] == 255).all()


def test_what_lies_outside_the_pictures_own_box_is_cut_off() -> None:
    wide = {"icons": {"bt": {"body": RED_BOX.format(w=99, h=99), "left": 2, "top": 1, "width": 8, "height": 4}}}
    pixels = world.rasterise(world.icon_svg(wide, "bt") or "")
    assert (pixels[:16] == 255).all() and (pixels[16:48] == (255, 0, 0)).all() and (pixels[48:] == 255).all()


def test_transparency_lies_on_white() -> None:
    half = {"icons": {"x": {"body": '<path fill="#000" fill-opacity=".5" d="M0 0h16v16H0z"/>'}}}
    assert np.allclose(world.rasterise(world.icon_svg(half, "x") or ""), 127.5, atol=1)


# --- fetching, with a stand-in for the npm client


def tarball(source: sources.Source, folder: Path, files: dict[str, Any]) -> sources.Source:
    """Write the package as npm would, and return the source with its hash pinned."""
    path = folder / source.filename
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return dataclasses.replace(source, integrity=f"sha512-{digest}")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tarballs from which a stand-in `npm pack` serves whatever is asked for."""
    served, programs = tmp_path / "registry", tmp_path / "programs"
    served.mkdir()
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nname, version = sys.argv[2].rsplit('@', 1)\n"
        f"shutil.copy({str(served)!r} + '/' + name.lstrip('@').replace('/', '-') + '-' + version + '.tgz', '.')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return served


def test_a_package_is_fetched_once_and_then_read_from_the_cache(registry: Path, tmp_path: Path) -> None:
    source = tarball(sources.NOTO, registry, {"icons.json": {"icons": {}}})
    path = sources.fetch(source, tmp_path / "cache")
    shutil.rmtree(registry)
    assert sources.fetch(source, tmp_path / "cache") == path
    assert sources.read_json(path, "icons.json") == {"icons": {}}


def test_a_package_with_another_hash_is_refused_and_not_kept(registry: Path, tmp_path: Path) -> None:
    tarball(sources.NOTO, registry, {"icons.json": {"icons": {"smuggled": {}}}})
    with pytest.raises(sources.SourceError, match="is pinned") as caught:
        sources.fetch(sources.NOTO, tmp_path / "cache")
    assert caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_tarball_in_the_cache_is_fetched_again(registry: Path, tmp_path: Path) -> None:
    source = tarball(sources.NOTO, registry, {"icons.json": {}})
    (tmp_path / source.filename).write_bytes(b"cut short")
    assert sources.read_json(sources.fetch(source, tmp_path), "icons.json") == {}


def test_missing_npm_is_an_error_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sources.SourceError, match=r"emojibase-data@17\.0\.0") as caught:
        sources.fetch(sources.EMOJIBASE, tmp_path)
    assert "Node.js" in caught.value.hint


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    tarball(sources.NOTO, tmp_path, {})
    with pytest.raises(sources.SourceError, match=r"chars\.json"):
        sources.read_json(tmp_path / sources.NOTO.filename, "chars.json")


# --- the whole world


@pytest.fixture
def built(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> world.World:
    """The synthetic world, built from tarballs, then opened a second time without them."""
    contents: dict[sources.Source, dict[str, Any]] = {source: {} for source in sources.SOURCES}
    contents[sources.EMOJIBASE] = {"en/data.json": DATA, "meta/groups.json": {"groups": GROUPS}}
    for (source, member), content in FILES.items():
        contents[source][member] = content
    pinned = tuple(tarball(source, registry, files) for source, files in contents.items())
    repinned = dict(zip(sources.SOURCES, pinned, strict=True))
    styles = tuple(
        dataclasses.replace(style, source=repinned[style.source], names_of=style.names_of and repinned[style.names_of])
        for style in world.STYLES
    )
    monkeypatch.setattr(sources, "SOURCES", pinned)
    monkeypatch.setattr(sources, "EMOJIBASE", repinned[sources.EMOJIBASE])
    monkeypatch.setattr(world, "STYLES", styles)
    first = world.build(tmp_path / "cache")
    shutil.rmtree(registry)
    shutil.rmtree(tmp_path / "cache" / "packages")
    second = world.build(tmp_path / "cache")
    assert second.drawings == first.drawings
    return second


def test_identical_drawings_of_one_entity_and_style_are_kept_once(built: world.World) -> None:
    # Every synthetic drawing is the same red box: the dark firefighter goes, other entities and styles stay.
    ids = {drawing.id for drawing in built.drawings}
    assert "noto/1f9d1-200d-1f692" in ids and "noto/1f9d1-1f3ff-200d-1f692" not in ids
    assert {"noto/1fa95", "noto-v1/1fa95"} <= ids


def test_select_combines_its_conditions(built: world.World) -> None:
    chosen = [built.drawings[i].id for i in built.select(style="Twemoji", group="flags")]
    assert chosen == ["twemoji/1f1e7-1f1f9"]
    assert built.select(style="Fluent").tolist() == []
    assert built.select().tolist() == list(range(len(built)))


def test_pixels_images_and_png_files_agree(built: world.World) -> None:
    assert built.pixels.shape == (len(built), 64, 64, 3) and not built.pixels.flags.writeable
    decoded = np.asarray(Image.open(io.BytesIO(built.to_png_bytes(0))))
    assert np.array_equal(decoded, built.pixels[0]) and np.array_equal(built.image(0), built.pixels[0])


def test_by_entity_covers_every_drawing_once(built: world.World) -> None:
    entities = built.by_entity()
    assert sorted(i for indices in entities.values() for i in indices) == list(range(len(built)))
    assert {built.drawings[i].style for i in entities["1fa95"]} == {"Noto", "Noto v1"}
