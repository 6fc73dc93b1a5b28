"""Prepared neighbours: what a training document may retrieve, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import CheckpointError
from racm3.testing import HashingRetriever
from racm3.training.neighbours import NeighbourSettings, prepare_neighbours

WORDS = ["kite", "whale", "banjo", "flag"]


def world():
    """Six drawings of each of four things: their captions share a word, their pictures a colour.

    Rows 0-5 are kites, and so on. Rows 5, 11, 17 and 23 are held out. Row 1 is row 0 once more under another id.
    """
    documents, groups = [], []
    rng = np.random.default_rng(0)
    colours = np.uint8([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]])
    for word, colour in zip(WORDS, colours, strict=True):
        for number in range(6):
            picture = colour + rng.integers(0, 50, (8, 8, 3), dtype=np.uint8)
            documents.append(Document([f"{word} {word} {word} {number}", Image(picture)], id=f"{word}-{number}"))
            groups.append(f"{word}-{number}")
    documents[1] = documents[0].replace(id="again")
    # Rows 2 and 3 are by the same hand.
    groups[3] = groups[2]
    held_out = np.array([5, 11, 17, 23])
    return documents, groups, np.setdiff1d(np.arange(24), held_out), held_out


def topk(**settings):
    return NeighbourSettings(**{"keep": 3, "candidates": 8, "sampler": "topk", **settings})


def prepare(progress=None, **settings):
    documents, groups, training, held_out = world()
    return prepare_neighbours(
        documents, groups, training, held_out, HashingRetriever(), topk(**settings), progress=progress
    )


@pytest.fixture(scope="module")
def neighbours():
    return prepare()


def test_there_are_rows_for_each_document_form_and_draw(neighbours):
    assert (neighbours.rows.shape, neighbours.rows.dtype) == ((24, 2, 2, 3), np.int32)
    assert neighbours.rows.max() < 24 and neighbours.rows.min() >= -1


def test_no_document_is_its_own_neighbour(neighbours):
    for row in range(24):
        assert row not in neighbours.rows[row]


def test_a_duplicate_under_another_id_is_no_neighbour(neighbours):
    assert 1 not in neighbours.rows[0] and 0 not in neighbours.rows[1]


def test_a_document_of_the_same_group_is_no_neighbour(neighbours):
    assert 3 not in neighbours.rows[2] and 2 not in neighbours.rows[3]
    # Their fellows do find them: it is the group that keeps them apart.
    assert {2, 3} <= set(np.concatenate([neighbours.rows[row].ravel() for row in (0, 1, 4)]).tolist())


def test_training_documents_find_training_documents_only(neighbours):
    _, _, training, held_out = world()
    assert not np.isin(neighbours.rows[training], held_out).any()


def test_held_out_documents_find_all(neighbours):
    """As at inference: the memory holds the training documents, and those of other held-out things."""
    documents, groups, training, held_out = world()
    documents[11] = Document(documents[5].parts[:1] + documents[11].parts[1:], id="a namesake")
    groups[11] = "whale-5"
    found = prepare_neighbours(documents, groups, training, held_out, HashingRetriever(), topk(candidates=64))
    assert 11 in found.rows[5] and 5 in found.rows[11]
    assert np.isin(found.rows[held_out], training).any()


def test_neighbours_are_alike(neighbours):
    """Most share the word with the text query, and the colour with the picture query."""
    kinds = np.arange(24) // 6
    for form in range(2):
        assert np.mean(kinds[neighbours.rows[:, form]] == kinds[:, None, None]) > 0.8


def test_the_nearest_comes_first():
    """Without dropout, the order is that of the scores."""
    documents, groups, training, _ = world()
    found = prepare(dropout=0.0, draws=1)
    retriever = HashingRetriever()
    vectors = retriever.encode_document(documents)
    for row in training:
        for form in range(2):
            query = retriever.encode_query([Document(documents[row].parts[form])])[0]
            allowed = [
                j for j in training
                if groups[j] != groups[row] and documents[j].content_hash != documents[row].content_hash
            ]  # fmt: skip
            scores = sorted((float(query @ vectors[j]) for j in allowed), reverse=True)[:3]
            assert [float(query @ vectors[j]) for j in found.rows[row, form, 0]] == pytest.approx(scores, abs=1e-5)


def test_query_dropout_varies_the_neighbours_of_training_documents_only(neighbours):
    _, _, training, held_out = world()
    differ = (neighbours.rows[:, :, 0] != neighbours.rows[:, :, 1]).any(axis=(1, 2))
    assert differ[training].mean() > 0.3
    assert not differ[held_out].any()


def test_the_query_is_one_modality(monkeypatch):
    asked = []
    encode = HashingRetriever.encode_query

    def spy(self, queries, **options):
        asked.extend(query.modalities for query in queries)
        return encode(self, queries, **options)

    monkeypatch.setattr(HashingRetriever, "encode_query", spy)
    prepare(draws=1)
    assert set(asked) == {frozenset({"text"}), frozenset({"image"})}
    found = prepare(draws=1, forms=("image",))
    assert found.rows.shape == (24, 1, 1, 3)


def test_the_sampler_chooses_and_gaps_are_marked():
    """A strict sampler leaves fewer than wanted; what is missing is -1, at the end."""
    rows = prepare(sampler="diverse", threshold=0.3, keep=6).rows
    assert (rows == -1).any()
    assert (np.diff((rows == -1).astype(int), axis=-1) >= 0).all()
    one = prepare(sampler="diverse", threshold=0.3, keep=1).rows
    assert (one[..., 0] == rows[..., 0]).all()


def test_a_seed_repeats_the_neighbours(neighbours):
    assert (prepare().rows == neighbours.rows).all()
    assert (prepare(seed=1).rows != neighbours.rows).any()


def test_a_crowd_of_duplicates_does_not_use_up_the_candidates():
    """Sixty times the same document, each a group of its own, and a few others farther off: those are found."""
    same = Document(["kite kite", Image(np.full((8, 8, 3), 200, np.uint8))])
    documents = [same.replace(id=f"same-{number}") for number in range(60)]
    documents += [Document([f"kite {number}", Image(np.full((8, 8, 3), 90 + number, np.uint8))]) for number in range(3)]
    rows = np.arange(len(documents))
    found = prepare_neighbours(
        documents, [str(row) for row in rows], rows, rows[:0], HashingRetriever(), topk(candidates=4, draws=1),
    )  # fmt: skip
    assert set(found.rows[0].ravel().tolist()) == {60, 61, 62}


def test_scores_are_those_of_the_documents(neighbours):
    assert (neighbours.scores.shape, neighbours.scores.dtype) == (neighbours.rows.shape, np.float32)
    found = prepare(dropout=0.0, draws=1)
    retriever, (documents, *_) = HashingRetriever(), world()
    query = retriever.encode_query([Document(documents[7].parts[0])])[0]
    vectors = retriever.encode_document(documents)[found.rows[7, 0, 0]]
    assert found.scores[7, 0, 0] == pytest.approx(vectors @ query, abs=1e-5)


def test_a_killed_preparation_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("racm3.training.neighbours.BLOCK", 5)
    documents, groups, training, held_out = world()
    whole = prepare()
    encoded = []

    class Counting(HashingRetriever):
        def encode_document(self, documents, **options):
            encoded.extend(documents)
            return super().encode_document(documents, **options)

    def run(kill_at=None):
        def progress(done, total, what):
            assert total == len(documents)
            if what.startswith("neighbours") and done == kill_at:
                raise KeyboardInterrupt

        return prepare_neighbours(
            documents, groups, training, held_out, Counting(), topk(), folder=tmp_path, digest="one", progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(kill_at=10)
    found = run()
    assert (found.rows == whole.rows).all() and (found.scores == whole.scores).all()
    assert isinstance(found.rows, np.memmap) and len(encoded) == len(documents)


def candidates_in(folder):
    (path,) = folder.glob("candidates-*.npy")
    return np.load(path, allow_pickle=False)


def test_all_candidates_are_kept_with_their_scores(tmp_path):
    documents, groups, training, held_out = world()
    settings = NeighbourSettings(keep=3, candidates=24, draws=2, dropout=0.0, threshold=0.3)
    retriever = HashingRetriever()
    prepare_neighbours(documents, groups, training, held_out, retriever, settings, folder=tmp_path)
    kept, vectors = candidates_in(tmp_path), retriever.encode_document(documents)
    assert kept.shape == (24, 2, 2, 24)
    for row, form in ((7, 0), (7, 1), (11, 0), (1, 1)):
        (query,) = retriever.encode_query([Document([documents[row].parts[form]])])
        for found in kept[row, form]:
            found = found[found["row"] >= 0]
            visible = training if row in training else np.arange(24)
            assert set(found["row"].tolist()) == {
                other for other in visible
                if groups[other] != groups[row] and documents[other].content_hash != documents[row].content_hash
            }  # fmt: skip
            assert found["score"] == pytest.approx(vectors[found["row"]] @ query, abs=1e-5)
            assert (np.diff(found["score"]) <= 0).all()


def test_another_sampler_asks_for_nothing_anew(tmp_path, monkeypatch):
    documents, groups, training, held_out = world()

    def made(**settings):
        asked = NeighbourSettings(keep=3, candidates=22, **settings)
        return prepare_neighbours(documents, groups, training, held_out, HashingRetriever(), asked, folder=tmp_path)

    made(threshold=0.5)
    apart = prepare(sampler="diverse", threshold=0.95, keep=3, candidates=22)

    def encode(*_, **__):
        raise AssertionError("asked for anew")

    monkeypatch.setattr(HashingRetriever, "encode_query", encode)
    monkeypatch.setattr(HashingRetriever, "encode_document", encode)
    found = made(threshold=0.95)
    assert (found.rows == apart.rows).all() and (found.scores == apart.scores).all()
    with pytest.raises(AssertionError, match="asked for anew"):
        made(dropout=0.5)


def test_a_preparation_that_was_killed_among_candidates_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("racm3.training.neighbours.BLOCK", 5)
    documents, groups, training, held_out = world()
    whole = prepare()
    asked = []

    class Counting(HashingRetriever):
        def encode_query(self, queries, **options):
            asked.extend(queries)
            return super().encode_query(queries, **options)

    def run(progress=None):
        return prepare_neighbours(
            documents, groups, training, held_out, Counting(), topk(), folder=tmp_path, progress=progress,
        )  # fmt: skip

    def stop(done, total, what):
        if what.startswith("candidates") and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    found = run()
    assert (found.rows == whole.rows).all() and (found.scores == whole.scores).all()
    assert len(asked) == 24 * 2 * 2


def test_a_changed_retriever_is_refused_half_way(tmp_path, monkeypatch):
    monkeypatch.setattr("racm3.training.neighbours.BLOCK", 5)
    documents, groups, training, held_out = world()

    def stop(done, total, what):
        if what.startswith("neighbours"):
            raise KeyboardInterrupt

    def run(retriever, progress=None):
        prepare_neighbours(
            documents, groups, training, held_out, retriever, topk(), folder=tmp_path, progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(HashingRetriever(), stop)
    with pytest.raises(CheckpointError, match="changed"):
        run(HashingRetriever(dim=32))


def test_progress_reaches_its_total():
    seen = []
    prepare(progress=lambda *a: seen.append(a[:2]))
    assert seen == [(24, 24)] * 3  # the vectors, the candidates, the neighbours


def test_tables_of_several_settings_lie_side_by_side(tmp_path):
    documents, groups, training, held_out = world()

    def made(**settings):
        asked = NeighbourSettings(keep=3, draws=1, dropout=0.0, threshold=0.5, **settings)
        return prepare_neighbours(documents, groups, training, held_out, HashingRetriever(), asked, folder=tmp_path)

    diverse, top = made(), made(sampler="topk")
    kinds = sorted(path.name.partition("-")[0] for path in tmp_path.glob("*.npy"))
    assert kinds == ["candidates", "neighbours", "neighbours", "vectors.npy"]
    same = [np.arange(24)[:, None, None, None] // 6 == found.rows // 6 for found in (diverse, top)]
    assert same[0].mean() < 0.5 < same[1].mean()  # what is like the query, and like each other, is passed over
    for path in tmp_path.glob("*.npy"):
        np.load(path, allow_pickle=False)
    for again, before in ((made(), diverse), (made(sampler="topk"), top)):
        assert (again.rows == before.rows).all() and (again.scores == before.scores).all()


@pytest.mark.parametrize("settings", [{"keep": 3}, {"keep": 2, "dropout": 0.1}], ids=["the same", "others"])
def test_neighbours_by_another_retriever_are_refused(tmp_path, settings):
    documents, groups, training, held_out = world()
    prepare_neighbours(documents, groups, training, held_out, HashingRetriever(), topk(), folder=tmp_path)
    with pytest.raises(CheckpointError, match="retriever changed") as raised:
        prepare_neighbours(
            documents, groups, training, held_out, HashingRetriever(dim=32), topk(**settings), folder=tmp_path
        )
    assert raised.value.hint


def test_candidates_are_asked_for_until_enough_of_them_are_kept():
    """Of a crowd of near duplicates the sampler keeps one; what else there is lies behind it."""
    documents, groups, training, held_out = world()
    rng = np.random.default_rng(1)
    for row in range(2, 6):
        noise = rng.integers(0, 2, (8, 8, 3), dtype=np.uint8)
        documents[row] = Document(["kite kite kite 0", Image(np.uint8([[[200, 0, 0]]]) + noise)], id=f"kite-{row}")
    found = prepare_neighbours(
        documents, groups, training, held_out, HashingRetriever(), NeighbourSettings(keep=3, candidates=2),
    )  # fmt: skip
    everything = prepare_neighbours(
        documents, groups, training, held_out, HashingRetriever(), NeighbourSettings(keep=3, candidates=24),
    )  # fmt: skip
    assert np.array_equal(found.rows, everything.rows)
    assert (found.rows[training] >= 0).all()
