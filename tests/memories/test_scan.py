"""The scan in half precision leaves out nothing that is among the best, whatever rounding does."""

from __future__ import annotations

import os

import numpy as np
import pytest

from racm3.errors import MemoryCorrupt
from racm3.memories import page_cache, scan
from racm3.memories.names import ids_of, slots
from racm3.memories.segment import Segment, joined, mapped, records_of, write

DIM = 24


def segment(seqs, vectors):
    return Segment(np.array(seqs), vectors, slots([b"%d" % seq for seq in seqs]))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random(rng, n):
    return rng.standard_normal((n, DIM))


def crowded(rng, n):
    """All within the rounding of a half: only float32 tells them apart."""
    return np.ones(DIM) + 3e-4 * rng.standard_normal((n, DIM))


def repeated(rng, n):
    return rng.standard_normal((7, DIM))[rng.integers(0, 7, n)]


def tiny(rng, n):
    """Numbers below the least that a half can hold in full."""
    return np.where(np.arange(DIM) == 0, 1, 1e-6 * rng.standard_normal((n, DIM)))


@pytest.fixture(autouse=True)
def halves(monkeypatch):
    monkeypatch.setattr(scan, "PLAIN", 0)


@pytest.fixture(params=[random, crowded, repeated, tiny])
def vectors(request):
    return unit(request.param(np.random.default_rng(0), 3000))


def segments(vectors, tmp_path, sizes):
    """Some of them mapped, the last in memory."""
    made, start = [], 0
    for size in sizes:
        made.append(segment(np.arange(start, start + size) + 1, vectors[start : start + size]))
        start += size
    for place, one in enumerate(made[:-1]):
        path = tmp_path / str(place)
        with path.open("wb") as file:
            sha256 = write([(one, None)], file)
        made[place] = mapped(path, len(one), DIM, one.names.shape[1], sha256)
    return made


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def products(request, monkeypatch):
    """In what many queries are multiplied: any processor can do both, if not as quickly."""
    monkeypatch.setattr(scan, "_multiplies_bfloat16", lambda: request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("sizes", [(2900, 100), (1100, 1200, 700), (1, 2000, 64, 935)])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("k", [1, 10, 700, 5000])
def test_all_that_are_as_good_as_the_kth_best_are_candidates(vectors, tmp_path, monkeypatch, sizes, queries, k):
    monkeypatch.setattr(scan, "BLOCK", 256)
    monkeypatch.setattr(scan, "WIDENED", 100)
    rng, every = np.random.default_rng(1), segments(vectors, tmp_path, sizes)
    asked = unit(vectors[:queries] + 0.01 * random(rng, queries))
    wanted = rng.random(3000) < 0.7
    excluded = [np.sort(rng.choice(3000, size=number, replace=False)) for number in (40, 0, 1, 2000, 3000)[:queries]]
    scores = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    for among in (None, wanted, rng.random(3000) < 0.1, np.arange(3000) == 2999):  # dense, and sparse
        found = scan.candidates(every, asked, k, wanted=among, excluded=excluded)
        assert len(found) == queries
        for row in range(queries):
            pool = np.setdiff1d(np.arange(3000) if among is None else np.flatnonzero(among), excluded[row])
            least = np.sort(scores[row, pool])[-k] if len(pool) > k else -2
            assert set(found[row]) <= set(pool) and len(set(found[row])) == len(found[row])
            assert set(pool[scores[row, pool] >= least]) <= set(found[row])


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("queries", [1, 3])
def test_few_more_than_the_best_are_candidates(tmp_path, queries):
    vectors = unit(random(np.random.default_rng(0), 3000))
    asked = unit(random(np.random.default_rng(1), queries))
    for found in scan.candidates(
        segments(vectors, tmp_path, (2999, 1)), asked, 10, wanted=None, excluded=[np.empty(0, int)] * queries
    ):
        assert 10 <= len(found) <= 40


def test_rounding_at_its_worst_loses_nothing(monkeypatch):
    """Numbers that lie where bfloat16 rounds most, so that two vectors change places."""
    monkeypatch.setattr(scan, "_multiplies_bfloat16", lambda: True)
    low, high = (np.full(127, 2**-4 * (1 + 2**-8 * (1 + way * 1e-4)), np.float32) for way in (-1, 1))
    small = np.float32([2**-8])
    query, first, second = (
        np.concatenate(parts) for parts in ((low, high, small), (low, -high, small), (-low, high, -small))
    )
    vectors = np.stack([first, second])
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    assert scores[0] > 0 > scores[1]
    made = [Segment(np.array([1, 2]), vectors, np.empty((2, 0), np.uint8))]
    for rows in scan.candidates(made, np.stack([query, query]), 1, wanted=None, excluded=[np.empty(0, int)] * 2):
        assert 0 in rows


@pytest.mark.usefixtures("products")
def test_few_of_a_crowd_are_candidates_too(tmp_path):
    """Where bfloat16 cannot tell thousands apart, they are looked at more closely."""
    rng = np.random.default_rng(0)
    crowd = unit(random(rng, 1) + 0.05 * random(rng, 3000))
    asked = np.concatenate([unit(crowd[:1] + 0.01 * random(rng, 1)), unit(random(rng, 1))])
    found = scan.candidates(
        segments(crowd, tmp_path, (2999, 1)), asked, 10, wanted=None, excluded=[np.empty(0, int)] * 2
    )
    for query, rows in zip(asked, found, strict=True):
        scores = crowd.astype(np.float64) @ query.astype(np.float64)
        assert set(np.argsort(-scores)[:10]) <= set(rows) and len(rows) < 1000


def test_a_segment_is_read_as_it_was_written(tmp_path):
    vectors = unit(random(np.random.default_rng(0), 50))
    whole, kept = segment(np.arange(1, 51) * 3, vectors), np.arange(50) % 3 > 0
    with (tmp_path / "rows").open("wb") as file:
        pieces = segment(whole.seqs[:20], vectors[:20]), segment(whole.seqs[20:], vectors[20:])
        write([(pieces[0], kept[:20]), (pieces[1], None)], file)
    kept[20:] = True
    found = mapped(tmp_path / "rows", int(kept.sum()), DIM, whole.names.shape[1], "")
    assert np.array_equal(found.seqs, whole.seqs[kept]) and np.array_equal(found.vectors, vectors[kept])
    assert np.array_equal(found.halves, vectors[kept].astype(np.float16))
    assert ids_of(found.names) == [str(seq) for seq in found.seqs]


@pytest.mark.parametrize("widths", [(8, 16), (16, 8), (16, 0)])
def test_ids_of_any_length_lie_beside_their_vectors(tmp_path, widths):
    vectors = unit(random(np.random.default_rng(0), 4))
    longs = {8: [b"a", b"b"], 16: [b"longer", b"x" * 10], 0: [b"z" * 123, b"y" * 500]}  # the last have no slot
    parts = [
        (Segment(np.arange(2) + 1 + 2 * place, vectors[2 * place :][:2], slots(longs[width])), None)
        for place, width in enumerate(widths)
    ]
    expected = [None if width == 0 else id.decode() for width in widths for id in longs[width]]
    with (tmp_path / "rows").open("wb") as file:
        write(parts, file)
    found = mapped(tmp_path / "rows", 4, DIM, 16, "")
    assert ids_of(joined(parts).names) == ids_of(found.names) == expected


@pytest.mark.parametrize("few", [True, False], ids=["few rows", "many rows"])
@pytest.mark.parametrize("sparing", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_records_come_alike_from_files_and_from_memory(tmp_path, monkeypatch, cached, sparing, few):
    monkeypatch.setattr(page_cache, "is_cached", lambda *place: cached)
    if not few:
        monkeypatch.setattr("racm3.memories.segment.SINGLY", 0)
    vectors, ids = unit(random(np.random.default_rng(0), 90)), [b"x" * (1 + n // 8) for n in range(90)]
    made, read = [], []
    for place in range(0, 90, 30):  # the slots of each are wider
        part = Segment(np.arange(place + 1, place + 31), vectors[place:][:30], slots(ids[place:][:30]))
        if place < 60:
            with (tmp_path / str(place)).open("wb") as file:
                write([(part, None)], file)
            part = mapped(tmp_path / str(place), 30, DIM, part.names.shape[1], "")
        made.append(part)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(given) or preadv(*given))
    rows = np.array([89, 3, 3, 31, 60, 0, 59])
    for _ in range(2):
        found = records_of(made, rows, sparing=sparing)
        assert np.array_equal(found.vectors, vectors[rows])
        assert ids_of(found.names) == [ids[row].decode() for row in rows]
        found.vectors[:] = 0  # a copy, and not of the file
    assert len(read) == (0 if not few or (cached and not sparing) else 10 if sparing else 5)
    assert np.array_equal(records_of(made[:1], rows[1:3], sparing=sparing).vectors, vectors[[3, 3]])
    assert len(records_of(made, rows[:0], sparing=sparing).vectors) == 0


def test_an_id_that_has_rotted_is_none():
    slot = slots([b"cat-01"])
    assert ids_of(slot) == ["cat-01"]
    for bit in range(8 * 12):  # check, length and id
        rotten = np.unpackbits(slot, axis=1)
        rotten[0, bit] ^= 1
        assert ids_of(np.packbits(rotten, axis=1)) == [None]


@pytest.mark.parametrize("rows", [0, 9, 11, -10, 2**40])
def test_a_file_of_another_size_is_no_segment(tmp_path, rows):
    with (tmp_path / "rows").open("wb") as file:
        write([(segment(np.arange(1, 11), unit(random(np.random.default_rng(0), 10))), None)], file)
    with pytest.raises(ValueError, match="size"):
        mapped(tmp_path / "rows", rows, DIM, 8, "")


@pytest.mark.parametrize("seqs", [[0, 1], [2, 2], [3, 1]])
def test_numbers_that_do_not_ascend_are_no_segment(tmp_path, seqs):
    with (tmp_path / "rows").open("wb") as file:
        write([(segment(np.array(seqs), unit(random(np.random.default_rng(0), 2))), None)], file)
    with pytest.raises(ValueError, match="ascend"):
        mapped(tmp_path / "rows", 2, DIM, 8, "")


def test_a_file_that_has_become_shorter_is_an_error_of_ours(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    with path.open("wb") as file:
        write([(segment(np.arange(1, 11), unit(random(np.random.default_rng(0), 10))), None)], file)
    monkeypatch.setattr(page_cache, "is_cached", lambda *place: False)
    found = mapped(path, 10, DIM, 8, "")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MemoryCorrupt, match="shorter"):
        records_of([found], np.array([0, 9]), sparing=False)
