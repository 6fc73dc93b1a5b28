"""The retriever's training: the text tokenizer, batches without false negatives, learning, resuming, and the export."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from racm3.errors import ConfigError
from racm3.training.clip_checkpoint import END, PADDING, clip_tokenizer
from racm3.training.data import TrainingSet
from racm3.training.retriever import RetrieverSettings, RetrieverStage, retrieval_figures, train_retriever
from racm3.training.retriever_batches import PairSampler, TextViews, augment, draw_batch
from racm3.training.stage_recipes import check_recipe
from racm3.training.text_tokenizer import train_text_tokenizer

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 40),
    "grey": (120, 120, 120),
}
SHAPES = ("square", "bar", "frame", "cross", "corner")
STYLES = ("Flat", "Soft", "Dark")


def shape(name: str, colour: tuple[int, int, int], style: int) -> np.ndarray:
    """A 32x32 drawing; a style moves it and changes its shade."""
    mask = np.zeros((32, 32), bool)
    low, high = 6 + style, 26 + style
    if name == "square":
        mask[low:high, low:high] = True
    elif name == "bar":
        mask[13 + style : 19 + style, 2:30] = True
    elif name == "frame":
        mask[low:high, low:high] = True
        mask[low + 5 : high - 5, low + 5 : high - 5] = False
    elif name == "cross":
        mask[14 + style : 18 + style, low:high] = mask[low:high, 14 + style : 18 + style] = True
    else:
        mask[low : low + 5, low:high] = mask[low:high, low : low + 5] = True
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[mask] = np.array(colour) * (1 - 0.2 * style)
    return picture


def world(colours) -> TrainingSet:
    rows = [(c, s, v) for c, s, v in itertools.product(colours, SHAPES, range(3))]
    return TrainingSet(
        pixels=np.stack([shape(s, COLOURS[c], v) for c, s, v in rows]),
        ids=[f"{c}-{s}-{v}" for c, s, v in rows],
        texts=[f"{c} {s}, in {STYLES[v]} style" for c, s, v in rows],
        entities=[f"{c}-{s}" for c, s, _ in rows],
        names=[f"{c} {s}" for c, s, _ in rows],
        sources=[STYLES[v] for _, _, v in rows],
        keywords=[[s, "drawing"] for _, s, _ in rows],
    )


DATA, HELD_OUT = world(["red", "green", "blue", "yellow"]), world(["grey"])
RECIPE = {
    "model": {
        "vocabulary": 280, "batch_size": 12, "made_up": 0.25,
        "architecture": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
            "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
        },
    },
    "trainer": {"steps": 6, "learning_rate": 2e-3, "save_every": 3, "log_every": 1, "device": "cpu", "ema": 0.9},
}  # fmt: skip


def recipe(**trainer) -> dict:
    changed = json.loads(json.dumps(RECIPE))
    changed["trainer"].update(trainer)
    return changed


# --- the text tokenizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["  Two  Spaces\n", "Ünïcödé é é", "日本 🪕👩🏽‍🚒", f"<mask:0> {END} {PADDING} <eoss>", "\x00\x7f"]
)
def test_every_text_comes_back_exactly_as_it_went_in(tmp_path, text):
    tokenizer = train_text_tokenizer(DATA.texts, 300, tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert not tokenizer.get_added_tokens_decoder()


def test_the_tokenizer_depends_on_the_texts_alone(tmp_path):
    train_text_tokenizer(DATA.texts, 300, tmp_path / "one.json")
    train_text_tokenizer(reversed(DATA.texts), 300, tmp_path / "two.json")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    with pytest.raises(ConfigError):
        train_text_tokenizer(DATA.texts, 255, tmp_path / "three.json")


def test_ids_for_clip_end_in_the_end_of_text_and_are_padded_behind_it(tmp_path):
    train_text_tokenizer(DATA.texts, 300, tmp_path / "tokenizer.json")
    tokenizer = clip_tokenizer(tmp_path / "tokenizer.json", 12)
    end, padding = tokenizer.token_to_id(END), tokenizer.token_to_id(PADDING)
    short, long, literal = (e.ids for e in tokenizer.encode_batch(["red", "red square " * 20, f"{END}{PADDING}"]))
    assert short[short.index(end) :] == [end] + [padding] * (11 - short.index(end))
    assert len(long) == 12 and long[-1] == end and long.count(end) == 1
    assert literal.count(end) == 1 and literal[0] not in (end, padding)


# --- batches ---------------------------------------------------------------------------------------------------


def test_a_pair_shows_one_thing_by_two_sources():
    pairs, rng = PairSampler(DATA), np.random.default_rng(0)
    for entity in range(len(pairs)):
        one, other = pairs.draw(entity, rng)
        assert DATA.entities[one] == DATA.entities[other] and DATA.sources[one] != DATA.sources[other]
    alone = TrainingSet(DATA.pixels[:2], ["a", "b"], ["x", "y"], ["a", "b"])
    assert PairSampler(alone).draw(1, rng) == (1, 1)


def test_a_pair_keeps_to_one_form_where_two_sources_drew_it():
    names, sources = ["cook", "cook", "cook: dark", "cook: pale"], ["A", "B", "A", "B"]
    data = TrainingSet(DATA.pixels[:4], list("abcd"), names, ["cook"] * 4, names, sources)
    drawn = {PairSampler(data).draw(0, np.random.default_rng(seed)) for seed in range(40)}
    assert {(0, 1), (1, 0)} <= drawn
    assert all(sources[one] != sources[other] for one, other in drawn)
    assert all(other in (0, 1) for one, other in drawn if one in (0, 1))


def test_no_thing_comes_up_twice_in_a_batch_and_batches_depend_on_their_position_alone():
    pairs, views = PairSampler(DATA), TextViews(DATA)

    def draw(*seed):
        return draw_batch(DATA, pairs, views, size=100, made_up=0.25, seed=seed)

    batch = draw(0, 5, 0)
    assert len(batch["texts"]) == len(batch["pixels"]) == 2 * len(pairs) and batch["real"] == 15
    pixels = {p.tobytes(): e for p, e in zip(DATA.pixels, DATA.entities, strict=True)}
    for half in (batch["pixels"][:15], batch["pixels"][20:35]):
        assert len({pixels[p.tobytes()] for p in half}) == 15
    assert draw_batch(DATA, pairs, views, size=2, made_up=0.9, seed=(0,))["real"] == 1  # or captions had no loss at all
    again, other = draw(0, 5, 0), draw(0, 6, 0)
    assert again["texts"] == batch["texts"] and (again["pixels"] == batch["pixels"]).all()
    assert other["texts"] != batch["texts"]


def test_made_up_names_keep_their_name_and_differ_from_their_neighbour_in_a_word():
    views = TextViews(DATA)
    assert views.frames == sorted(f"{{}}, in {style} style" for style in STYLES)
    pairs = views.made_up(20, np.random.default_rng(0))
    for (one, again), (other, _) in zip(pairs[::2], pairs[1::2], strict=True):
        name = one.split(",")[0].lower().split()
        assert again.split(",")[0].lower().split() == name
        assert sum(a != b for a, b in zip(name, other.split(",")[0].lower().split(), strict=True)) <= 1


def test_pictures_without_augmentation_are_only_scaled():
    plain = augment(DATA.pixels[:4], 32, np.random.default_rng(0), 0.0)
    torch.testing.assert_close(
        plain, torch.from_numpy(DATA.pixels[:4].copy()).permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-4, rtol=0
    )
    strong = augment(DATA.pixels[:4], 48, np.random.default_rng(0), 1.0)
    assert strong.shape == (4, 3, 48, 48) and float(strong.abs().max()) <= 1.0 + 1e-4


# --- training --------------------------------------------------------------------------------------------------


def test_a_few_steps_lower_the_loss_and_things_never_seen_are_found(tmp_path):
    figures = train_retriever(recipe(steps=80, learning_rate=4e-3), DATA, HELD_OUT, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()[:-1]]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])
    assert figures["name_to_document"] >= 0.6 and figures["drawing_to_held_out"] > 0.3


def test_documents_can_take_part_in_the_loss(tmp_path):
    changed = recipe(steps=2)
    changed["model"]["document"] = 1.0
    train_retriever(changed, DATA, HELD_OUT, tmp_path)
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    parts = {
        name: first[name] for name in ("image_text", "image_image", "text_text", "image_document", "text_document")
    }
    weights = {"image_text": 2.0}
    expected = sum(weights.get(n, 1.0) * v for n, v in parts.items()) / 6
    assert first["loss"] == pytest.approx(expected, abs=1e-4)


def test_a_resumed_run_ends_like_one_that_was_never_stopped(tmp_path):
    train_retriever(recipe(), DATA, HELD_OUT, tmp_path / "whole")
    # Stopped after the third of six steps; the schedule must not know that.
    train_retriever(recipe(steps=3, schedule="constant"), DATA, HELD_OUT, tmp_path / "resumed")
    train_retriever(recipe(schedule="constant"), DATA, HELD_OUT, tmp_path / "resumed")
    train_retriever(recipe(schedule="constant"), DATA, HELD_OUT, tmp_path / "constant")
    constant, resumed = (
        load_file(tmp_path / n / "model" / "open_clip_model.safetensors") for n in ("constant", "resumed")
    )
    assert all(torch.equal(constant[name], resumed[name]) for name in constant)
    whole = load_file(tmp_path / "whole" / "model" / "open_clip_model.safetensors")
    assert not torch.equal(whole["text_projection"], constant["text_projection"])


def test_the_export_gives_open_clip_the_vectors_that_were_trained(tmp_path):
    import open_clip
    from PIL import Image

    train_retriever(recipe(steps=2), DATA, HELD_OUT, tmp_path)
    folder = f"local-dir:{tmp_path / 'model'}"
    model, preprocess = open_clip.create_model_from_pretrained(folder)
    model.eval()
    tokens = open_clip.get_tokenizer(folder)(DATA.texts[:3])
    settings = RetrieverSettings(**RECIPE["model"])
    stage = RetrieverStage(settings, DATA, HELD_OUT, tmp_path / "tokenizer.json")
    encode_images, encode_texts = stage.encoder(model)
    assert torch.equal(tokens, stage.tokens(DATA.texts[:3]))
    with torch.no_grad():
        images = torch.stack([preprocess(Image.fromarray(p)) for p in DATA.pixels[:3]])
        np.testing.assert_allclose(
            model.encode_image(images, normalize=True).numpy(), encode_images(DATA.pixels[:3]), atol=1e-4
        )
        np.testing.assert_allclose(
            model.encode_text(tokens, normalize=True).numpy(), encode_texts(DATA.texts[:3]), atol=1e-5
        )
    assert load_file(tmp_path / "model" / "open_clip_model.safetensors")["text_projection"].dtype == torch.float16


def test_figures_of_a_perfect_and_of_a_blind_encoder():
    entities = sorted({*DATA.entities, *HELD_OUT.entities})

    def of(names):
        return np.eye(len(entities), dtype=np.float32)[
            [entities.index("-".join(n.split(",")[0].split())) for n in names]
        ]

    by_pixels = {p.tobytes(): t for s in (DATA, HELD_OUT) for p, t in zip(s.pixels, s.texts, strict=True)}
    perfect = (lambda pixels: of([by_pixels[p.tobytes()] for p in pixels])), of
    assert set(retrieval_figures(perfect, DATA, HELD_OUT).values()) == {1.0}
    same = lambda things: np.ones((len(things), 4), np.float32) / 2  # noqa: E731
    assert retrieval_figures((same, same), DATA, HELD_OUT)["name_to_document"] == 0.0


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("text_cfg", {"heads": 3}, "divisible"), ("text_cfg", {"widht": 3}, "widht"),
        ("vision_cfg", {"patch_size": 0}, "cannot build"), ("vision_cfg", {"image_size": "big"}, "needs embed_dim"),
        ("vision_cfg", {"timm_model_name": "nope"}, "nope"),
    ],
)  # fmt: skip
def test_an_architecture_that_open_clip_cannot_build_is_found_out_before_documents_are_read(tower, change, message):
    sound = recipe()
    before = json.dumps(sound)
    check_recipe("retriever", sound)
    assert json.dumps(sound) == before  # it is what is written down
    wrong = recipe()
    wrong["model"]["architecture"][tower] |= change
    with pytest.raises(ConfigError, match=message) as raised:
        check_recipe("retriever", wrong)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("table", "change"),
    [("model", {"batchsize": 3}), ("trainer", {"steps": 0}), ("model", {"architecture": {"embed_dim": 8}})],
)
def test_a_recipe_with_a_mistake_is_refused(tmp_path, table, change):
    wrong = recipe()
    wrong[table].update(change)
    with pytest.raises(ConfigError):
        train_retriever(wrong, DATA, HELD_OUT, tmp_path)
