"""An analysis from end to end: what is trained and measured, once; that it goes on after a kill; what it then says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file, save_file

from racm3.ablation import analysis
from racm3.ablation.analysis import Ablation, analyse, read_measurement, training_seconds
from racm3.ablation.estimate import estimates
from racm3.ablation.figures import figures
from racm3.ablation.measure import Bench
from racm3.ablation.report import markdown, write_report
from racm3.ablation.rows import Condition, plan
from racm3.document import Blank, Document
from racm3.errors import CheckpointError, ConfigError, WeightsNotFound
from racm3.generators.cm3.generator import Cm3Generator
from racm3.interfaces import Request
from racm3.testing import HashingRetriever
from racm3.training.generator import GeneratorStage, image_token_losses
from racm3.training.runs import Run, open_corpus


@pytest.fixture
def make(toy_run, toy_recipe, tmp_path):
    """Makes an analysis, and its documents."""

    def make(*groups, out="ablation", seeds=1, drawings=2, **trainer):
        recipe, run = toy_recipe(**trainer), Run(toy_run)
        made = Ablation(run, plan(recipe, groups), tmp_path / out, seeds, drawings)
        return made, open_corpus(run, "generator", recipe)

    return make


def whole(ablation, corpus):
    *_, bench = analyse(ablation, corpus, HashingRetriever(64))
    return bench


@pytest.fixture
def trained(monkeypatch):
    """The steps that are trained, as (model folder's name, step)."""
    seen, batch, train = [], GeneratorStage.batch, analysis._train

    def noted(self, step, micro):
        if not micro:
            seen.append((running[0], step))
        return batch(self, step, micro)

    running = [""]

    def named(ablation, inputs, model, seed, progress):
        running[0] = f"{model.name}-{seed}"
        train(ablation, inputs, model, seed, progress)

    monkeypatch.setattr(GeneratorStage, "batch", noted)
    monkeypatch.setattr(analysis, "_train", named)
    return seen


def test_each_model_is_trained_once_and_measured_in_all_its_conditions(make, trained):
    ablation, corpus = make("relevance", "k", seeds=2)
    bench = whole(ablation, corpus)
    names = [f"{model}-{seed}" for seed in (0, 1) for model in ("ours", "random")]
    assert trained == [(name, step) for name in names for step in range(4)]
    found = {path.stem for path in (ablation.out / "rows").glob("*.json")}
    keys = {f"ours-k{k}" for k in range(5)} | {"ours-k2-random", "random-k2", "random-k2-random"}
    assert found == {f"{key}-{seed}" for key in keys for seed in (0, 1)}
    for name in names:  # what is left of a run is what it made
        left = {path.name for path in (ablation.out / "models" / name).glob("[!.]*")}
        assert left == {"stage.json", "log.jsonl", "model"}
    one, other = (read_measurement(ablation, "ours-k2", seed) for seed in (0, 1))
    assert len(one["nats"]) == len(bench.held_out) == len(corpus.held_out) and one["nats"] != other["nats"]
    assert all(0 < value < 2 * np.log(32) for value in one["nats"]) and len(one["hits"]) == 2
    del trained[:]
    whole(ablation, corpus)
    assert trained == []


def test_a_killed_analysis_goes_on_and_comes_to_the_same(make, trained, monkeypatch):
    ablation, corpus = make("alpha", out="killed")
    batch = GeneratorStage.batch

    def killed(self, step, micro):
        if (self.objective.alpha, step, micro) == (0.1, 3, 1):
            raise KeyboardInterrupt
        return batch(self, step, micro)

    monkeypatch.setattr(GeneratorStage, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        whole(ablation, corpus)
    assert [state for _, _, state in ablation.training_runs()] == ["begun", "waiting", "waiting", "waiting"]
    assert [one["state"] for one in estimates(ablation)["runs"]][:2] == ["begun", "waiting"]
    monkeypatch.setattr(GeneratorStage, "batch", batch)
    del trained[:]
    whole(ablation, corpus)
    assert [step for name, step in trained if name == "ours-0"] == [2, 3]  # saved every two steps
    assert len(trained) == 2 + 3 * 4
    assert all(state == "trained" for _, _, state in ablation.training_runs())
    assert estimates(ablation)["seconds"] == 0
    at_once, _ = make("alpha", out="at-once")
    whole(at_once, corpus)
    for row in ablation.plan.rows:
        one, other = (read_measurement(each, row.key, 0) for each in (ablation, at_once))
        assert (one["nats"], one["hits"]) == (other["nats"], other["hits"])


def test_another_recipe_in_the_same_folder_is_refused(make):
    ablation, corpus = make("k")
    whole(ablation, corpus)
    other, _ = make("k", learning_rate=1e-3)
    with pytest.raises(
        ConfigError, match=r"ours-0 was trained by another recipe: \[trainer\] learning_rate differs"
    ) as raised:
        whole(other, corpus)
    assert "--out" in raised.value.hint


def test_more_seeds_and_more_drawings_train_no_more_than_they_need(make, trained):
    ablation, corpus = make("k")
    whole(ablation, corpus)
    before = read_measurement(ablation, "ours-k1", 0)
    del trained[:]
    more, _ = make("k", seeds=2, drawings=3)
    whole(more, corpus)
    assert {name for name, _ in trained} == {"ours-1"}
    after = read_measurement(more, "ours-k1", 0)
    assert after["nats"] == before["nats"] and len(after["hits"]) == 3


def test_a_decoder_that_was_trained_further_paints_for_models_that_are_older(make, toy_run, trained):
    ablation, corpus = make("k")
    bench = whole(ablation, corpus)
    before = read_measurement(ablation, "ours-k1", 0)
    shutil.copytree(toy_run / "image-tokenizer" / "model", toy_run / "decoder" / "model")
    (weights,) = (toy_run / "decoder" / "model").glob("*.safetensors")
    save_file(
        {
            name: 2 * value if name.startswith("decoder.conv_out") else value
            for name, value in load_file(weights).items()
        },
        weights,
    )
    del trained[:]
    again = whole(ablation, corpus)
    after = read_measurement(ablation, "ours-k1", 0)
    assert trained == [] and after["nats"] == before["nats"] and after["decoder"] != before["decoder"]
    tokens = np.zeros((1, bench.image_tokenizer.tokens), np.int64)
    assert not np.array_equal(*(one.image_tokenizer.decode(tokens) for one in (bench, again)))
    (place,) = {path.name for path in (ablation.out / "rows" / "ours-k1-0").iterdir()} & {f"{before['places'][0]}.png"}
    shown = np.asarray(PIL.Image.open(ablation.out / "rows" / "ours-k1-0" / place))
    generator = Cm3Generator(checkpoint=ablation.folder("ours", 0) / "model")
    assert not np.array_equal(
        shown, np.asarray(again.draw(generator, Condition(1), before["places"][:1], 0)[0].picture)
    )


def test_what_was_measured_of_another_model_is_measured_again(make):
    ablation, corpus = make("k")
    whole(ablation, corpus)
    before = read_measurement(ablation, "ours-k1", 0)
    shutil.rmtree(ablation.out / "models")
    other, _ = make("k", steps=6)
    whole(other, corpus)
    after = read_measurement(other, "ours-k1", 0)
    assert after["nats"] != before["nats"] and after["recipe"] != before["recipe"]


def test_fine_tuning_takes_over_the_vanilla_weights(make, monkeypatch):
    ablation, corpus = make("fine-tuning", learning_rate=1e-9, drawings=0)
    whole(ablation, corpus)
    vanilla, tuned = (
        Cm3Generator(checkpoint=ablation.folder(name, 0) / "model")
        .checkpoint.model.get_input_embeddings()
        .weight.detach()
        for name in ("vanilla", "fine-tuned")
    )
    assert float((vanilla - tuned).abs().max()) < 1e-3 < float(vanilla.std())
    assert read_measurement(ablation, "vanilla-k0", 0)["hits"] == []


def test_what_is_missing_is_said_before_anything_is_trained(make, toy_run, monkeypatch):
    ablation, corpus = make("k")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        whole(ablation, corpus)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match="seed at least"):
        make("k", seeds=0)
    with pytest.raises(ConfigError, match="held out"):
        whole(ablation, type(corpus)(corpus.data, np.array([], np.int64)))
    (toy_run / "image-tokenizer" / "model").unlink()
    with pytest.raises(WeightsNotFound, match="image-tokenizer is not trained yet"):
        whole(ablation, corpus)


# --- what a model is shown --------------------------------------------------------------------------------------


@pytest.fixture
def bench(make):
    ablation, corpus = make("k", "diversity", "modality")
    return analysis._prepare(ablation, corpus, HashingRetriever(64), None)[1]


def test_what_is_shown_is_what_the_caption_finds_and_never_the_thing_itself(bench: Bench):
    for row in bench.held_out:
        shown = bench.context(row, Condition(4), 0)
        assert len(shown) == 4 and row not in shown and shown == bench.context(row, Condition(4), 1)
        assert bench.context(row, Condition(2), 0) == shown[:2] and bench.context(row, Condition(0), 0) == []
        # The other drawing of the same colour shares a word with the caption.
        assert bench.data.entities[row] in {bench.data.entities[other] for other in shown[:2]}


def test_random_documents_are_training_documents_drawn_anew_for_each_seed(bench: Bench):
    training = set(range(len(bench.data))) - set(bench.held_out)
    drawn = {(row, seed): bench.context(row, Condition(2, "random"), seed) for row in bench.held_out for seed in (0, 1)}
    assert all(len(set(rows)) == 2 and set(rows) <= training for rows in drawn.values())
    assert any(drawn[row, 0] != drawn[row, 1] for row in bench.held_out)


@pytest.mark.parametrize(("parts", "kept"), [("both", ["text", "image"]), ("text", ["text"]), ("image", ["image"])])
def test_of_a_document_only_the_parts_of_the_condition_are_shown(bench: Bench, parts, kept):
    condition = Condition(2, parts=parts)
    for hit in bench.hits(0, condition, 0):
        assert [part.modality for part in hit.document.parts] == kept


def test_topk_and_diverse_are_tables_of_their_own(bench: Bench):
    assert set(bench.tables) == {"diverse", "topk"}


def test_groups_of_documents_are_averaged_as_probabilities(bench: Bench, make, monkeypatch):
    ablation, corpus = make("k")
    whole(ablation, corpus)
    generator = Cm3Generator(checkpoint=ablation.folder("ours", 0) / "model")
    seen = []

    def noted(*arguments):
        seen.append(image_token_losses(*arguments))
        return seen[-1]

    monkeypatch.setattr("racm3.training.generator.image_token_losses", noted)
    found = bench.nats(generator, Condition(3), 0)
    losses = np.concatenate(seen).reshape(len(bench.held_out), 2, -1)  # of groups of two and of one
    assert found == pytest.approx(-np.log(np.exp(-losses).mean(1)).mean(1), rel=1e-5)
    assert np.abs(losses[:, 0] - losses[:, 1]).max() > 1e-6
    del seen[:]
    plain = bench.nats(generator, Condition(2), 0)
    assert plain == pytest.approx(np.concatenate(seen).mean(1), rel=1e-5)


@pytest.mark.parametrize(
    "condition",
    [Condition(0), Condition(2), Condition(2, "random"), Condition(2, parts="text"), Condition(1, parts="image")],
    ids=lambda condition: condition.name,
)
def test_what_is_measured_is_what_a_generator_would_say(bench: Bench, make, condition):
    """Over the tokens of training, and over documents as they are looked up: the same likelihood."""
    ablation, corpus = make("k", steps=1)
    whole(ablation, corpus)
    generator = Cm3Generator(checkpoint=ablation.folder("ours", 0) / "model")
    truth = [bench.truth(place) for place in range(len(bench.held_out))]
    requests = [
        Request(Document([document.text, Blank("image")], id=document.id), tuple(bench.hits(place, condition, 0)))
        for place, document in enumerate(truth)
    ]
    scores = [-score.log_probability / sum(score.tokens) for score in generator.score(requests, truth)]
    assert bench.nats(generator, condition, 0) == pytest.approx(scores, rel=1e-4)


# --- figures and the report -------------------------------------------------------------------------------------


def measured(ablation, key, seed, nats, hits=()):
    """A measurement as if it had been taken."""
    path = ablation.measurement(key, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    places = list(range(len(hits)))
    judged = {"places": places, "judge": "somebody"}
    path.write_text(
        json.dumps(
            {"nats": nats, "hits": list(hits), **judged, "parameters": 1000, "training_seconds": 60.0}
        )
    )  # fmt: skip


def test_differences_are_taken_on_the_same_documents_and_seeds(make):
    ablation, corpus = make("relevance", seeds=3)
    bench = analysis._prepare(ablation, corpus, HashingRetriever(64), None)[1]
    count = len(bench.held_out)
    hard = np.linspace(1, 9, count)  # some documents are far harder than others
    for seed in range(3):
        measured(ablation, "ours-k2", seed, (hard + 0.1 * seed).tolist(), [1, 0])
        measured(ablation, "ours-k2-random", seed, (hard + 0.1 * seed + 0.5).tolist(), [0, 0])
    measured(ablation, "random-k2", 2, (hard + 1).tolist(), [0, 0])
    found = figures(ablation, bench)
    ours, at_training, at_inference, at_both = found["groups"][0]["rows"]
    assert ours["nats"]["value"] == pytest.approx(5.1) and ours["difference"] is None
    assert ours["nats"]["spread"] == pytest.approx(0.1) and len(ours["nats"]["by_seed"]) == 3
    assert ours["perplexity"]["value"] == pytest.approx(np.exp(5.1))
    assert at_inference["difference"]["value"] == pytest.approx(0.5)
    assert at_inference["difference"]["interval"] == pytest.approx([0.5, 0.5])  # the documents cancel out
    assert ours["nats"]["interval"][1] - ours["nats"]["interval"][0] > 1
    assert at_training["seeds"] == [2] and at_training["difference"]["value"] == pytest.approx(0.8)
    assert at_training["nats"]["spread"] is None
    assert at_both["nats"] is None and not found["finished"]
    assert ours["recall_at_1"]["value"] == pytest.approx(0.5)
    said = markdown(found)
    assert "**retrieved documents** | 5.1000 | 0.1000 | reference" in said and "not measured yet" in said
    assert "+0.5000 (+0.5000 to +0.5000)" in said and "Not all rows have the same number of seeds" in said


def test_some_rows_may_have_more_seeds_than_others(make):
    ablation, corpus = make("parameters", seeds=1)
    bench = analysis._prepare(ablation, corpus, HashingRetriever(64), None)[1]
    for name, seeds in (("ours-k2", 3), ("vanilla-k0", 2), ("vanilla-4x-k0", 1)):
        for seed in range(seeds):
            measured(ablation, name, seed, [1.0 + seed] * len(bench.held_out))
    ours, vanilla, larger = figures(ablation, bench)["groups"][0]["rows"]
    assert (ours["seeds"], vanilla["seeds"], larger["seeds"]) == ([0, 1, 2], [0, 1], [0])
    assert ours["nats"]["value"] == 2.0 and vanilla["difference"]["value"] == 0.0
    (ablation.out / "models" / "vanilla-4x-7").mkdir(parents=True)
    assert ablation.seeds_of("models", "vanilla") == [] and ablation.seeds_of("models", "vanilla-4x") == [7]


def test_the_report_has_tables_plots_and_grids_and_is_there_before_the_end(make):
    ablation, corpus = make("modality")
    lengths = []
    for bench in analyse(ablation, corpus, HashingRetriever(64)):
        found = write_report(ablation, bench, ["a note of the caller's"])
        lengths.append((ablation.out / "report.md").read_text().count("not measured yet"))
    assert lengths == [2, 1, 0, 0] and found["finished"]
    assert json.loads((ablation.out / "ablation.json").read_text()) == json.loads(json.dumps(found))
    assert (ablation.out / "modality.png").read_bytes().startswith(b"\x89PNG")
    said, shown = (ablation.out / "report.md").read_text(), (ablation.out / "index.html").read_text()
    assert "a note of the caller's" in said and "One seed" in said and "](modality.png)" in said
    # Of two captions: what three models drew, the truth, and the documents; and one plot.
    assert shown.count("<img") == 2 * (3 + 1 + 2) + 1
    drawn = sorted((ablation.out / "rows").glob("*/*.png"))[0]
    drawn.write_bytes(drawn.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=f"{drawn}.* Delete {drawn.parent}.json: it is measured again"):
        write_report(ablation, bench)
    assert found["hardware"]["torch"] and found["models"]["text-only"]["recipe"]["objective"]["context_parts"] == "text"


def test_seconds_of_training_count_a_step_once(tmp_path):
    lines = [
        {"step": 10, "seconds_per_step": 1.0}, {"step": 10, "held_out_k2": 4.0}, {"step": 20, "seconds_per_step": 2.0},
        {"step": 20, "seconds_per_step": 3.0},
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_seconds(tmp_path) == 40.0
    assert training_seconds(tmp_path / "none") == 0.0
