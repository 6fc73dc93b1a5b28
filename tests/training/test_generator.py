"""The generator's training stage: what is in a batch, that context counts, that it learns, resumes and exports."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import VQModel
from pydantic import ValidationError
from safetensors.torch import load_file

from racm3.errors import CheckpointError, ConfigError, WeightsNotFound
from racm3.generators.cm3 import model as cm3_model
from racm3.generators.cm3.image_tokenizer import ImageTokenizer
from racm3.generators.cm3.masking import MaskingSettings
from racm3.generators.cm3.model import Checkpoint, Size
from racm3.training.data import TrainingSet, variant
from racm3.training.documents import PreparedDocuments, prepare_documents
from racm3.training.generator import (
    GeneratorModelSettings,
    GeneratorStage,
    ObjectiveSettings,
    collate,
    image_token_losses,
    train_generator,
)
from racm3.training.neighbours import Neighbours
from racm3.training.objective import weighted_sequence
from racm3.training.text_tokenizer import train_text_tokenizer
from racm3.training.trainer import TrainerSettings

ROWS, VARIANTS, TOKENS, CODES = 12, 4, 16, 64
HELD_OUT = np.array([10, 11])
ENTITIES = [np.array([0, 1, 2, 3, 4, 5]), np.array([6]), np.array([7, 8, 9])]


@pytest.fixture(scope="module")
def image_tokenizer():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(
            VQModel(
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8, 8, 8), layers_per_block=1, sample_size=16, latent_channels=4, vq_embed_dim=4,
                num_vq_embeddings=CODES, norm_num_groups=4,
            )
        )  # fmt: skip


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory):
    return train_text_tokenizer(["a red kite", "a grey whale"], 256, tmp_path_factory.mktemp("text") / "tokenizer.json")


@pytest.fixture(autouse=True)
def nano(monkeypatch):
    monkeypatch.setitem(cm3_model.SIZES, "nano", Size(2, 32, 2))


def prepared():
    """Row r in variant v is a picture of the code 4 r + v alone, under the caption [r]: a sequence shows its origin."""
    codes = np.arange(ROWS * VARIANTS, dtype=np.int32).reshape(ROWS, VARIANTS, 1)
    # Rows that each row retrieved: [documents, forms, draws, keep], nearest first. Row 0 found one only.
    rows = (np.arange(ROWS)[:, None, None, None] + np.array([1, 2]) + np.arange(4).reshape(2, 2, 1) * 2) % 10
    rows[0, :, :, 1] = -1
    return PreparedDocuments(
        images=codes.repeat(TOKENS, axis=2), texts=[[row] for row in range(ROWS)], entities=ENTITIES, held_out=HELD_OUT,
        neighbours=Neighbours(rows.astype(np.int32)),
    )  # fmt: skip


@pytest.fixture
def stage(text_tokenizer, image_tokenizer):
    def make(data=None, *, trainer=None, masking=None, **objective):
        settings = {"steps": 100, "learning_rate": 1e-3, "accumulation": 3, "device": "cpu", **(trainer or {})}
        return GeneratorStage(
            GeneratorModelSettings(size="nano", document_stride=32, image_offset=8, max_positions=128),
            ObjectiveSettings(**{"batch_size": 6, **objective}), MaskingSettings(**(masking or {})),
            TrainerSettings(**settings), data or prepared(), text_tokenizer, image_tokenizer,
        )  # fmt: skip

    return make


def documents(stage, batch):
    """For each row of a batch, the documents in it as (row, variant), x last, read from the pictures."""
    vocabulary = stage.format.vocabulary
    start = vocabulary.control("<s>")
    found = []
    for ids in batch["ids"].numpy():
        starts = [*np.flatnonzero(ids == start), len(ids)]
        codes = [ids[a:b][ids[a:b] >= vocabulary.first_image] - vocabulary.first_image for a, b in pairwise(starts)]
        assert all(len(set(c.tolist())) == 1 and len(c) == TOKENS for c in codes)
        found.append([divmod(int(c[0]), VARIANTS) for c in codes])
    return found


def batches(stage, steps=20):
    return [stage.batch(step, micro) for step in range(steps) for micro in range(3)]


# --- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_step_and_micro_batch_only(stage):
    settings = {"variants": 0.5, "copies": (0.5, 0.5), "corruption": 0.1}
    one, other = stage(**settings), stage(**settings)
    batches(other, 2)  # what was drawn before does not matter
    for position in ((3, 1), (0, 2)):
        first, second = one.batch(*position), other.batch(*position)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(one.batch(3, 0)["ids"], one.batch(6, 0)["ids"])
    reseeded = stage(trainer={"seed": 1}, **settings)
    assert not torch.equal(one.batch(3, 0)["ids"], reseeded.batch(3, 0)["ids"])


def test_k_takes_all_its_values_over_the_micro_batches_of_a_step(stage):
    made = stage(k=(0, 1, 2))
    for step in range(3):
        counts = [{len(found) - 1 for found in documents(made, made.batch(step, micro))} for micro in range(3)]
        # Row 0 has found one document only, whatever K.
        assert [max(count) for count in counts] == [0, 1, 2]
        assert counts[0] == {0} and counts[1] == {1} and counts[2] <= {1, 2}


def test_k_takes_all_its_values_over_steps_without_accumulation(stage):
    made = stage(k=(0, 2), trainer={"accumulation": 1})
    assert [max(len(d) for d in documents(made, made.batch(step, 0))) - 1 for step in range(4)] == [0, 2, 0, 2]


def test_entities_are_drawn_uniformly_and_held_out_rows_never(stage):
    made = stage()
    drawn = [found[-1][0] for batch in batches(made, 25) for found in documents(made, batch)]
    assert not set(drawn) & set(HELD_OUT.tolist())
    for entity in ENTITIES:
        assert np.mean(np.isin(drawn, entity)) == pytest.approx(1 / 3, abs=0.08)


def test_the_documents_are_neighbours_the_nearest_last(stage):
    made = stage(k=(2,))
    rows = made.data.neighbours.rows
    pairs = set()
    for batch in batches(made, 10):
        for *context, (row, _) in documents(made, batch):
            choices = [[int(r) for r in rows[row, f, d] if r >= 0] for f in range(2) for d in range(2)]
            assert [r for r, _ in reversed(context)] in choices
            pairs.add((row, tuple(context)))
    assert len(pairs) > 10 + 10  # query forms and dropout draws alternate


def test_each_document_has_its_slot(stage):
    made = stage(k=(2,))
    batch = made.batch(0, 0)
    vocabulary = made.format.vocabulary
    starts = batch["ids"] == vocabulary.control("<s>")
    for row in range(6):
        at = batch["positions"][row][starts[row]].tolist()
        assert at == [0, 32, 64][: len(at)]
        main = batch["positions"][row][batch["main"][row]]
        assert main.min() == at[-1]


def test_a_variant_is_applied_to_the_document_and_all_its_context_alike(stage):
    made = stage(k=(2,), variants=0.5)
    chosen = []
    for batch in batches(made):
        for found in documents(made, batch):
            assert len({number for _, number in found}) == 1
            chosen.append(found[0][1])
    assert np.mean([number > 0 for number in chosen]) == pytest.approx(0.5, abs=0.1)
    assert set(chosen) == set(range(VARIANTS))


def test_copies_put_the_document_itself_among_the_retrieved(stage):
    made = stage(k=(2,), copies=(1.0, 1.0))
    places = [[r for r, _ in found[:-1]].index(found[-1][0]) for b in batches(made) for found in documents(made, b)]
    assert set(places) == {0, 1}


def test_the_share_of_copies_falls_over_the_run(stage):
    made = stage(k=(1,), copies=(1.0, 0.0))

    def share(steps):
        return np.mean(
            [f[0][0] == f[-1][0] for s in steps for m in range(3) for f in documents(made, made.batch(s, m))]
        )

    assert share([0]) == 1.0
    assert share(range(45, 55)) == pytest.approx(0.5, abs=0.12)
    assert share(range(95, 100)) < 0.15


def test_corruption_changes_what_is_shown_and_never_what_is_learned(stage):
    plain, corrupted = stage(k=(2,)), stage(k=(2,), corruption=0.25)
    first_image = plain.format.vocabulary.first_image
    shares = []
    for step in range(10):
        before, after = plain.batch(step, 0), corrupted.batch(step, 0)
        for name in ("ids", "positions", "weights", "main"):
            assert torch.equal(before[name], after[name])
        assert "inputs" not in before
        changed = after["inputs"] != after["ids"]
        candidates = after["main"] & (after["ids"] >= first_image)
        assert not (changed & ~candidates).any()
        assert (after["inputs"][changed] >= first_image).all()
        shares.append(changed.sum() / candidates.sum())
    assert np.mean(shares) == pytest.approx(0.25 * (1 - 1 / CODES), abs=0.03)


def test_the_model_is_shown_the_corrupted_tokens_and_judged_by_the_true_ones(stage):
    made = stage(k=(0,), corruption=0.5)
    model, batch = made.build(), made.batch(0, 0)
    corrupted = made.loss(model, batch)[0]
    shown = {**batch, "ids": batch["inputs"]}
    del shown["inputs"]
    true = {name: value for name, value in batch.items() if name != "inputs"}
    losses = (corrupted, made.loss(model, shown)[0], made.loss(model, true)[0])
    assert len({loss.item() for loss in losses}) == 3


def test_only_x_is_masked(stage):
    made = stage(k=(2,), masking={"whole_segment": 1.0})
    vocabulary = made.format.vocabulary
    for batch in batches(made, 3):
        sentinels = (batch["ids"] >= vocabulary.sentinel(0)) & (batch["ids"] < vocabulary.first_image)
        assert sentinels.sum() == 2 * 6
        assert (batch["main"] | ~sentinels).all()


def test_retrieved_documents_are_masked_where_that_is_asked_for(stage):
    made = stage(k=(2,), masking={"whole_segment": 1.0, "retrieved": True})
    vocabulary = made.format.vocabulary
    for batch in batches(made, 3):
        sentinels = (batch["ids"] >= vocabulary.sentinel(0)) & (batch["ids"] < vocabulary.first_image)
        documents_there = (batch["ids"] == vocabulary.control("<s>")).sum()
        assert sentinels.sum() == 2 * documents_there > 2 * 2 * 6  # two for each span, a span for each document
        assert not batch["weights"][sentinels].any()


def test_sentinels_weigh_what_is_asked_for(stage):
    made = stage(k=(1,), alpha=0.5, masking={"whole_segment": 1.0, "retrieved": True}, sentinel_weight=0.2)
    batch = made.batch(0, 0)
    vocabulary = made.format.vocabulary
    sentinels = (batch["ids"] >= vocabulary.sentinel(0)) & (batch["ids"] < vocabulary.first_image)
    assert np.allclose(batch["weights"][sentinels & batch["main"]], 0.2)
    assert np.allclose(batch["weights"][sentinels & ~batch["main"]], 0.1)


@pytest.mark.parametrize("k", [(), (-1,), (0, -2)])
def test_numbers_of_documents_that_there_cannot_be_are_refused(k):
    with pytest.raises(ValidationError):
        ObjectiveSettings(k=k)


def test_documents_must_fit_into_the_positions(stage):
    with pytest.raises(ConfigError, match=r"do not fit into .* max_positions"):
        stage(k=(0, 40))


def test_the_longest_caption_counts_too(stage):
    """A picture behind a long caption stands further on, and so does every document behind it."""
    captioned = [replace(prepared(), texts=[[row] * length for row in range(ROWS)]) for length in (11, 12)]
    made = stage(captioned[0], k=(2,))
    last = max(int(batch["positions"].max()) for batch in batches(made))
    assert last == 3 * made.settings.document_stride - 1
    with pytest.raises(ConfigError, match=r"up to 64 positions each \(the longest caption has 12 tokens\)") as raised:
        stage(captioned[1], k=(2,))
    assert "longest" in raised.value.hint


def test_padding_weighs_nothing_and_fills_up_to_a_multiple(stage):
    made = stage(k=(1,), pad_to=20)
    batch = made.batch(0, 0)
    assert batch["ids"].shape[1] % 20 == 0
    padding = batch["ids"] == made.format.vocabulary.control("<pad>")
    assert padding.any()
    assert not batch["weights"][padding].any() and not batch["main"][padding].any()


def test_neighbours_are_needed_only_for_documents(stage):
    data = replace(prepared(), neighbours=None)
    with pytest.raises(ConfigError, match="needs neighbours") as raised:
        stage(data, k=(0, 1))
    assert raised.value.hint
    assert stage(data, k=(0,)).batch(0, 0)["main"].any()


def test_random_documents_are_other_training_documents_and_need_no_neighbours(stage):
    made = stage(replace(prepared(), neighbours=None), k=(2,), context="random")
    shown = {row: [] for row in range(10)}
    for batch in batches(made):
        for *context, (row, _) in documents(made, batch):
            assert len(context) == 2 and row not in [r for r, _ in context]
            shown[row] += [r for r, _ in context]
    assert set(np.concatenate(list(shown.values())).tolist()) == set(range(10))  # all, and none that is held out
    assert len(set(shown[6])) > 5  # anew for each sample


@pytest.mark.parametrize(("shown", "pictures", "texts"), [("both", 3, 3), ("image", 3, 1), ("text", 1, 3)])
def test_documents_are_shown_in_part(stage, shown, pictures, texts):
    made = stage(k=(2,), context_parts=shown, masking={"rate": 0.0, "whole_segment": 0.0})
    vocabulary = made.format.vocabulary
    for sequence in (made.sample(row, 2, 0, np.random.default_rng(0)) for row in (3, 7)):
        ids = sequence.ids
        assert (ids >= vocabulary.first_image).sum() == pictures * TOKENS
        assert (ids < vocabulary.text_tokens).sum() == texts  # captions of a token each
        assert (ids[sequence.main] >= vocabulary.first_image).sum() == TOKENS
        first = np.flatnonzero(ids >= vocabulary.first_image)[0]
        assert sequence.positions[first] % 32 == 8  # a picture has its place, whatever stands before it


def test_documents_are_prepared_in_all_variants(text_tokenizer, image_tokenizer):
    rng = np.random.default_rng(0)
    data = TrainingSet(
        pixels=rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8), ids=list("abcd"),
        texts=["a red kite", "<mask:0>", "", "a whale"], entities=["x", "y", "x", "z"],
    )  # fmt: skip
    made = prepare_documents(data, np.array([1, 2]), text_tokenizer, image_tokenizer, variants=3)
    assert made.images.shape == (4, 3, TOKENS)
    for number in range(3):
        pixels = np.ascontiguousarray(variant(data.pixels, number))
        same = (made.images[:, number] == image_tokenizer.encode(pixels)).mean()
        assert same == 1 if number == 0 else same > 0.8  # variants are encoded in half precision
    assert [text_tokenizer.decode(ids) for ids in made.texts] == data.texts
    # Held-out rows are in no entity, and an entity with none left is gone.
    assert [rows.tolist() for rows in made.entities] == [[0], [3]]


# --- the trap: another document must change the logits -----------------------------------------------------------


def with_context(stage, row, other):
    parts = stage.data.parts
    context = stage.format.write(parts(other))
    own = stage.format.write(parts(row), slot=stage.format.slot_after(context))
    return weighted_sequence([context], own, stage.format.vocabulary, 0.1)


@pytest.fixture
def sharp(stage):
    """A model whose answers depend visibly on what it sees."""
    made = stage()
    torch.manual_seed(0)
    model = made.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return made, model


def test_another_document_changes_the_loss_of_x_in_training(sharp):
    stage, model = sharp
    pad = stage.format.vocabulary.control("<pad>")
    losses = []
    for other in (1, 2):
        batch = collate([with_context(stage, 0, other)], pad, 8)
        assert not batch["main"][:, :20].any()
        losses.append(float(stage.loss(model, batch)[1]["main"]))
    assert abs(losses[0] - losses[1]) > 1e-3


def test_another_document_changes_the_image_token_losses_in_evaluation(sharp):
    stage, model = sharp
    vocabulary = stage.format.vocabulary
    batch = collate([with_context(stage, 0, other) for other in (1, 2)], vocabulary.control("<pad>"), 8)
    with torch.no_grad():
        one, other = image_token_losses(model, batch, vocabulary).mean(1).tolist()
    assert abs(one - other) > 1e-3


def test_image_token_losses_are_those_of_x_among_image_tokens(sharp):
    stage, model = sharp
    vocabulary = stage.format.vocabulary
    sequence = with_context(stage, 0, 1)
    batch = collate([sequence], vocabulary.control("<pad>"), 8)
    with torch.no_grad():
        logits = model(
            input_ids=batch["ids"], position_ids=batch["positions"], attention_mask=torch.ones_like(batch["ids"])
        ).logits[0]
        found = image_token_losses(model, batch, vocabulary)
    logs = logits[:, vocabulary.first_image :].log_softmax(-1)
    at = [t for t, token in enumerate(sequence.ids) if sequence.main[t] and token >= vocabulary.first_image]
    assert len(at) == TOKENS
    assert found.shape == (1, TOKENS)
    expected = [-float(logs[t - 1, sequence.ids[t] - vocabulary.first_image]) for t in at]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("forms", [("text", "image"), ("image", "text")])
def test_held_out_pictures_stand_behind_what_their_captions_found(stage, monkeypatch, forms):
    """What a query that saw the picture found would make the figure too good."""
    data = prepared()
    data = replace(data, neighbours=replace(data.neighbours, forms=forms))
    made = stage(data, k=(2,), text_queries=0.0)
    shown, write = [], made._sequence
    monkeypatch.setattr(
        made, "_sequence", lambda row, context, *rest: shown.append((row, context)) or write(row, context, *rest)
    )
    assert made.evaluate(made.build()).keys() == {"held_out_k2"}
    assert [row for row, _ in shown] == HELD_OUT.tolist()
    for row, context in shown:
        found = data.neighbours.rows[row, forms.index("text")]
        assert context[::-1] in found.tolist()
        assert context[::-1] not in data.neighbours.rows[row, forms.index("image")].tolist()


def test_nothing_held_out_means_no_figures(stage):
    made = stage(replace(prepared(), held_out=np.array([], int)))
    assert made.evaluate(made.build()) == {}


# --- training ---------------------------------------------------------------------------------------------------


def test_image_embeddings_start_from_the_codebook(stage, image_tokenizer):
    """Codes that lie near each other start near each other."""
    made = stage()
    torch.manual_seed(0)
    embeddings = made.build().get_input_embeddings().weight.detach()
    images = embeddings[made.format.vocabulary.first_image :]
    distances = [torch.cdist(m, m)[np.triu_indices(CODES, 1)] for m in (images, image_tokenizer.codebook)]
    assert np.corrcoef(*[d.numpy() for d in distances])[0, 1] > 0.8
    assert float(images.std()) == pytest.approx(float(embeddings[: made.format.vocabulary.first_image].std()), rel=0.5)


def recipe(**trainer):
    return {
        "model": {"size": "nano", "document_stride": 32, "image_offset": 8, "max_positions": 128},
        "objective": {"batch_size": 4, "variants": 0.5, "copies": [0.5, 0.1], "corruption": 0.1},
        "trainer": {
            "steps": 4, "learning_rate": 3e-3, "accumulation": 3, "device": "cpu", "log_every": 1, "save_every": 2,
            **trainer,
        },
    }  # fmt: skip


def test_a_few_steps_on_two_documents_lower_the_loss(text_tokenizer, image_tokenizer, tmp_path):
    data = replace(prepared(), entities=[np.array([1]), np.array([7])], held_out=np.array([1, 7]))
    figures = train_generator(
        recipe(steps=15, learning_rate=1e-2, optimizer="muon", ema=0.5, save_every=15), data, text_tokenizer,
        image_tokenizer, tmp_path,
    )  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 15
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert figures.keys() == {"held_out_k0", "held_out_k1", "held_out_k2"}
    assert all(value < np.log(CODES) for value in figures.values())


def test_a_resumed_run_ends_with_the_same_weights(text_tokenizer, image_tokenizer, tmp_path, monkeypatch):
    def run(folder):
        return train_generator(recipe(ema=0.5), prepared(), text_tokenizer, image_tokenizer, tmp_path / folder)

    run("whole")
    batch = GeneratorStage.batch

    def stop(self, step, micro):
        if (step, micro) == (3, 1):
            raise KeyboardInterrupt
        return batch(self, step, micro)

    monkeypatch.setattr(GeneratorStage, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(GeneratorStage, "batch", batch)
    run("stopped")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_the_result_is_a_checkpoint_in_the_weight_format(text_tokenizer, image_tokenizer, tmp_path):
    train_generator(recipe(steps=1), prepared(), text_tokenizer, image_tokenizer, tmp_path)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    opened = Checkpoint.load(tmp_path / "model")
    assert (opened.format.document_stride, opened.format.image_offset) == (32, 8)
    assert opened.model.config.max_position_embeddings == 128
    assert torch.equal(opened.image_tokenizer.codebook, image_tokenizer.codebook)
    assert opened.text_tokenizer.to_str() == text_tokenizer.to_str()


# --- packed batches ---------------------------------------------------------------------------------------------


def test_packed_k_is_drawn_for_each_sample_and_every_sample_is_there(stage):
    made = stage(k=(0, 1, 2), pack_to=200, pad_to=8, batch_size=12)
    counts = []
    for step in range(4):
        batch = made.batch(step, 0)
        assert (batch["ids"].shape[1] <= 200) and (batch["ids"] == made.batch(step, 0)["ids"]).all()
        starts = batch["ids"] == made.format.vocabulary.control("<s>")
        for row in range(len(starts)):
            numbers = batch["samples"][row]
            for number in range(int(numbers.max()) + 1):
                mine = numbers == number
                counts.append(int((starts[row] & mine).sum()) - 1)
                assert batch["positions"][row][mine][0] == 0
                assert batch["main"][row][mine].any()
    assert len(counts) == 4 * 12
    # Row 0 has found one document only, so some of the twos are ones.
    assert counts.count(0) == 16 and counts.count(2) > 4


def test_packed_samples_have_the_loss_that_they_have_apart(sharp):
    from racm3.training.packing import collate_packed

    stage, model = sharp
    samples = [with_context(stage, 0, 1), with_context(stage, 7, 2)]
    pad = stage.format.vocabulary.control("<pad>")
    packed, apart = collate_packed(samples, pad, 200, 8), collate(samples, pad, 8)
    assert len(packed["ids"]) == 1 and len(apart["ids"]) == 2
    losses = [stage.loss(model, batch) for batch in (packed, apart)]
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-4)
    assert {"main", "retrieved", "padding"} <= losses[0][1].keys()
    assert stage.work(packed) == stage.work(apart)
    assert stage.work(apart)[0] == sum(len(sample.ids) for sample in samples)


def test_a_size_may_be_changed_in_part():
    shape = GeneratorModelSettings(size="tiny", width=512, heads=8).shape
    assert (shape.layers, shape.width, shape.heads, shape.learning_rate) == (6, 512, 8, 1e-3)
    with pytest.raises(ConfigError, match="3 heads cannot share a width of 256") as raised:
        _ = GeneratorModelSettings(size="tiny", heads=3).shape
    assert "multiple of 6" in raised.value.hint


def test_training_starts_from_given_weights(text_tokenizer, image_tokenizer, tmp_path):
    def trained(name, **model):
        asked = recipe(steps=1, learning_rate=1e-9)
        asked["model"] |= {"weight_format": "float32", **model}
        train_generator(asked, prepared(), text_tokenizer, image_tokenizer, tmp_path / name)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    first = trained("first")
    further = trained("further", start=str(tmp_path / "first" / "model"))
    assert all(torch.allclose(weight, further[name], atol=1e-6) for name, weight in first.items())
    with pytest.raises(CheckpointError, match="cannot start from"):
        trained("wider", start=str(tmp_path / "first" / "model"), width=64)
    with pytest.raises(WeightsNotFound):
        trained("nowhere", start=str(tmp_path / "nothing"))


def test_weights_of_other_tokens_are_refused(text_tokenizer, image_tokenizer, tmp_path):
    train_generator(recipe(steps=1), prepared(), text_tokenizer, image_tokenizer, tmp_path)
    # As many tokens, but other texts.
    other = train_text_tokenizer(["some blue boats", "few"], 256, tmp_path / "other.json")
    other = type(other).from_str(other.to_str().replace('"add_prefix_space":false', '"add_prefix_space":true'))
    asked = recipe(steps=1)
    asked["model"]["start"] = str(tmp_path / "model")
    with pytest.raises(CheckpointError, match="it knows other tokens"):
        train_generator(asked, prepared(), other, image_tokenizer, tmp_path / "other")


def test_a_learning_rate_that_is_left_out_is_that_of_the_size():
    from racm3.training.generator import generator_settings

    assert generator_settings({"model": {"size": "760m"}, "trainer": {"steps": 1}})[1].learning_rate == 5e-4
    given = {"model": {"size": "760m"}, "trainer": {"steps": 1, "learning_rate": 0.1}}
    assert generator_settings(given)[1].learning_rate == 0.1
