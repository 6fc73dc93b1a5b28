"""What survives: other processes, kills, damage, and folders that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from racm3.document import Document, Image
from racm3.errors import EncoderMismatch, MemoryCorrupt, MemoryLocked, MemoryStoreError
from racm3.interfaces import Encoder
from racm3.memories import snapshot
from racm3.memories.faiss import FaissMemory

DIM = 4
ENCODER = Encoder("e", DIM)


def unit(seed, n):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n, start=0):
    return [Document(f"text {i}", id=f"d{i}", metadata={"i": i}) for i in range(start, start + n)]


QUERIES = unit(9, 3)


def answer(memory):
    return [[(hit.id, hit.score) for hit in hits] for hits in memory.search(QUERIES, k=5)]


@pytest.fixture
def folder(tmp_path):
    """A closed memory of 20 documents, with its snapshot."""
    with FaissMemory(tmp_path / "memory") as memory:
        memory.bind(ENCODER)
        memory.add(texts(20), unit(0, 20))
    return tmp_path / "memory"


@pytest.fixture
def expected(folder):
    with FaissMemory(folder) as memory:
        return answer(memory)


def script(code):
    """Code for a new process that knows this module's names."""
    prelude = f"""
        import os, sys, signal, numpy as np
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_journal import *
        folder = Path(sys.argv[1])
    """
    return textwrap.dedent(prelude) + textwrap.dedent(code)


def python(code, *arguments, **options):
    """Run code in a new process that knows this module's names."""
    return subprocess.run(
        [sys.executable, "-c", script(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def failing(code):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    return fail


# Another process


def test_a_new_process_gives_the_same_answers(folder, expected):
    done = python("with FaissMemory(folder) as memory: print(json.dumps(answer(memory)))", folder)
    assert done.returncode == 0, done.stderr
    assert [[tuple(hit) for hit in hits] for hits in json.loads(done.stdout)] == expected


def test_what_was_added_survives_a_kill(tmp_path):
    done = python(
        """
        memory = FaissMemory(folder)
        memory.bind(ENCODER)
        memory.add(texts(7), unit(1, 7))
        def half():
            yield from texts(3, start=50)
            os.kill(os.getpid(), signal.SIGKILL)
        memory.add(half(), unit(2, 9))
        """,
        tmp_path / "memory",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with FaissMemory(tmp_path / "memory") as memory:
        assert [document for document, _ in memory.items()] == texts(7)
        assert memory.search(unit(1, 7)[4:5], k=1)[0][0].id == "d4"


def test_a_memory_takes_in_what_another_process_wrote(folder):
    with FaissMemory(folder) as memory:
        answer(memory)
        done = python(
            """
            with FaissMemory(folder) as memory:
                memory.add(texts(5, start=100), unit(3, 5))
                memory.delete(["d3"])
            """,
            folder,
        )
        assert done.returncode == 0, done.stderr
        memory.refresh()
        assert len(memory) == 24
        assert [hits[0].id for hits in memory.search(unit(3, 5), k=1)] == [f"d{i}" for i in range(100, 105)]
        assert memory.search(unit(0, 20)[3:4], k=1)[0][0].id != "d3"
        memory.add(texts(1, start=200), unit(4, 1))
    with FaissMemory(folder) as memory:
        assert memory.search(unit(4, 1), k=1)[0][0].id == "d200"


def test_two_writers_of_one_process_take_turns_and_readers_go_on(folder, expected, monkeypatch):
    monkeypatch.setattr("racm3.memories.connection.BUSY_SECONDS", 0.1)
    with FaissMemory(folder) as writer, FaissMemory(folder) as other, FaissMemory(folder, read_only=True) as reader:

        def slow():
            with pytest.raises(MemoryLocked, match="is being written"):
                other.add(texts(1, start=300), unit(5, 1))
            assert answer(other) == answer(reader) == expected
            yield from texts(1, start=400)

        writer.add(slow(), unit(6, 1))
        assert len(reader) == 21
        other.add(texts(1, start=300), unit(5, 1))
        assert len(writer) == 22
        with pytest.raises(MemoryLocked, match="read-only"):
            reader.delete(["d1"])


WRITER = """
memory = FaissMemory(folder)
memory.add(texts(1, start=500), unit(5, 1))
print(os.getpid(), flush=True)
"""
WAITING = """
sys.stdin.read()
"""
DYING = """
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start(code, folder):
    """A process that runs code until its input is closed; what it prints first is a process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", script(code), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


CHANGES = [
    lambda memory: memory.add(texts(1, start=600), unit(6, 1)),
    lambda memory: memory.delete(["d1"]),
    lambda memory: memory.compact(),
]


def test_a_second_writer_is_refused_at_once_with_the_process_id_of_the_first(folder, monkeypatch):
    monkeypatch.setattr("racm3.memories.connection.BUSY_SECONDS", 1e6)  # it does not wait for its turn
    writer, pid = start(WRITER + WAITING, folder)
    with FaissMemory(folder) as memory:
        for change in CHANGES:
            with pytest.raises(MemoryLocked, match=f"is being written by process {pid}") as raised:
                change(memory)
            assert raised.value.owner == pid
        assert len(memory) == 21 and memory.search(unit(5, 1), k=1)[0][0].id == "d500"  # reading goes on
        memory.flush()
        memory.verify()
        writer.communicate("")
        for change in CHANGES:
            change(memory)
        assert len(memory) == 21


def test_the_claim_of_a_dead_writer_is_no_obstacle_even_when_its_children_live(folder):
    writer, pid = start(WRITER + DYING, folder)
    writer.wait(60)
    os.kill(int(writer.stdout.readline()), 0)  # the child is alive
    assert writer.returncode == -signal.SIGKILL and (folder / ".lock").read_text() == str(pid)
    with FaissMemory(folder) as memory:
        assert memory.delete(["d500"]) == 1
    writer.stdin.close()
    writer.stdout.close()


def test_a_claim_ends_with_the_last_memory_of_its_process(folder):
    first, second = FaissMemory(folder), FaissMemory(folder)
    first.delete(["d1"])
    second.delete(["d2"])
    other = "with FaissMemory(folder) as memory: memory.delete(['d3'])"
    first.close()
    assert "is being written by process" in python(other, folder).stderr
    del second  # not closed: forgotten
    assert python(other, folder).returncode == 0


def test_reading_changes_nothing_in_a_memory_that_was_exported(folder, tmp_path, expected):
    with FaissMemory(folder) as memory:
        memory.export_read_only(tmp_path / "copy")
    before = (tmp_path / "copy" / "memory.db").read_bytes()
    with FaissMemory(tmp_path / "copy") as memory, FaissMemory(tmp_path / "copy", read_only=True) as reader:
        assert answer(memory) == expected
        memory.bind(ENCODER)
        memory.refresh()
        memory.close()
        assert [path.name for path in (tmp_path / "copy").iterdir()] == ["memory.db"]
        assert (tmp_path / "copy" / "memory.db").read_bytes() == before
        with FaissMemory(tmp_path / "copy") as writer:
            assert answer(reader) == expected
            writer.add(texts(1, start=700), unit(7, 1))
            assert reader.search(unit(7, 1), k=1)[0][0].id == "d700"


def test_an_export_is_there_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    with FaissMemory(folder) as memory:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing(28))
            with pytest.raises(MemoryStoreError, match="No space left"):
                memory.export_read_only(tmp_path / "copy")
        assert not list((tmp_path / "copy").iterdir())
        (tmp_path / "copy" / ".memory.db.part").write_bytes(b"what a killed export left")
        memory.export_read_only(tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["memory.db"]
    with FaissMemory(tmp_path / "copy", read_only=True) as copy:
        assert len(copy) == 20


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_a_setting_relaxes_the_durable_commit(folder, durable, level):
    with FaissMemory(folder, durable=durable) as memory:
        assert memory._journal.one("PRAGMA synchronous") == level  # 2: FULL, 1: NORMAL; see the power-loss harness
        memory.add(texts(1, start=800), unit(8, 1))
    with FaissMemory(folder) as memory:
        assert len(memory) == 21


def test_a_forked_process_is_told_to_open_its_own(folder):
    done = python(
        """
        with FaissMemory(folder) as memory:
            child = os.fork()
            if child == 0:
                try:
                    len(memory)
                except MemoryStoreError as error:
                    os._exit(0 if "Open it again in this process" in str(error) else 1)
                os._exit(2)
            print(os.waitpid(child, 0)[1], len(memory))
        """,
        folder,
    )
    assert done.stdout.split() == ["0", "20"], done.stderr


def test_a_forked_process_does_not_wait_for_what_a_thread_of_its_parent_holds(folder):
    done = python(
        """
        import threading
        with FaissMemory(folder) as memory:
            held, done = threading.Event(), threading.Event()
            def hold():
                with memory._journal.reading():
                    held.set()
                    done.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                told = 0
                for call in (lambda: len(memory), lambda: memory.delete(["d1"]), lambda: memory.export_read_only(folder / "x")):
                    try:
                        call()
                    except MemoryStoreError as error:
                        told += "Open it again in this process" in str(error)
                memory.close()
                os._exit(told)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            done.set()
            thread.join()
            print(len(memory))
        """,
        folder,
    )
    assert done.stdout.split() == ["3", "20"], done.stderr


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_forked_process_can_open_its_own_after_its_parent_has_searched(tmp_path, kind):
    filling = """
        vectors = np.random.default_rng(0).standard_normal((12000, 32)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        """
    made = python(
        filling
        + """
        with FaissMemory(folder) as memory:
            memory.bind(Encoder("wide", 32))
            memory.add(texts(12000), vectors)
            memory.reindex(sys.argv[2])
        """,
        tmp_path,
        kind,
    )
    assert made.returncode == 0, made.stderr
    done = python(
        filling
        + """
        def search():
            with FaissMemory(folder, read_only=True) as memory:
                return [[hit.id for hit in hits] for hits in memory.search(vectors[:200], k=3)]
        found = search()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if search() == found else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split() == ["0"], done.stderr


def test_a_forked_process_that_writes_keeps_its_claim_when_it_closes_what_it_inherited(folder):
    done = python(
        """
        inherited = FaissMemory(folder)
        inherited.delete(["d1"])
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ours, 1)
            memory = FaissMemory(folder)
            memory.delete(["d2"])
            inherited.close()
            del inherited
            done = python("FaissMemory(folder).delete(['d3'])", folder)
            os._exit(0 if f"is being written by process {os.getpid()}" in done.stderr else 1)
        inherited.close()
        os.write(theirs, b"!")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        folder,
    )
    assert done.stdout.split() == ["0"], done.stderr


# The snapshot


def snapshot_of(folder):
    return [path for path in folder.iterdir() if path.name.startswith(("index", "vectors"))]


def index_file(folder):
    (found,) = folder.glob("vectors-*.rows")
    return found


def tear(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def header(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: index_file(folder).unlink(),
        lambda folder: tear(index_file(folder)),
        lambda folder: flip(index_file(folder)),
        lambda folder: index_file(folder).write_bytes(b""),
        lambda folder: tear(folder / "index.json"),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: header(folder, format=99),
        lambda folder: header(folder, dim=3),
        lambda folder: header(folder, last_seq=1000),
        lambda folder: header(folder, last_seq=10),
        lambda folder: header(folder, generation=7),
        lambda folder: header(folder, segments=[{"file": "memory.db", "rows": 20, "sha256": ""}]),
        lambda folder: header(folder, last_seq="20"),
    ],
)
def test_a_missing_torn_or_foreign_snapshot_is_built_anew(folder, expected, damage, caplog):
    damage(folder)
    lost = not (folder / "index.json").exists()
    with FaissMemory(folder) as memory:
        assert answer(memory) == expected
    assert ("is passed over, and the index built anew" in caplog.text) == (not lost)
    assert snapshot.load(folder, DIM) is not None  # and closing mended it
    with FaissMemory(folder) as memory:
        assert answer(memory) == expected


def test_the_building_of_an_index_that_takes_long_is_told(folder, monkeypatch, caplog):
    monkeypatch.setattr("racm3.memories.kept_index.PATIENT", -1.0)
    (folder / "index.json").unlink()
    with FaissMemory(folder) as memory:
        answer(memory)
    assert f"The memory at {folder} is building its index: 20 of 20 documents." in caplog.messages


def test_a_stale_snapshot_is_caught_up_and_not_read_from_again(folder, tmp_path):
    old = {path.name: path.read_bytes() for path in snapshot_of(folder)}
    with FaissMemory(folder) as memory:
        memory.delete(["d0", "d1"])
        memory.add(texts(10, start=50), unit(7, 10))
        memory.add([Document("replaced", id="d2")], unit(8, 1), on_duplicate="replace")
        now = answer(memory)
    for path in snapshot_of(folder):
        path.unlink()
    for name, data in old.items():
        (folder / name).write_bytes(data)
    with FaissMemory(folder) as memory:
        assert answer(memory) == now
        assert memory.search(unit(8, 1), k=1)[0][0].document.text == "replaced"
        memory.flush()
        assert len(snapshot_of(folder)) == 2
        assert snapshot.load(folder, DIM).live.tolist() == [*range(4, 21), *range(21, 32)]


def test_the_snapshot_is_written_when_flushed_and_not_at_every_addition(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(texts(3), unit(0, 3))
        answer(memory)
        assert not snapshot_of(tmp_path)
        memory.flush()
        assert snapshot.saved_state(tmp_path) == (3, 0)


def test_a_snapshot_from_before_a_restored_backup_is_not_believed(folder):
    backup = (folder / "memory.db").read_bytes()
    with FaissMemory(folder) as memory:
        memory.add(texts(5, start=100), unit(1, 5))
    (folder / "memory.db").write_bytes(backup)
    with FaissMemory(folder) as memory:
        memory.add(texts(5, start=200), unit(2, 5))
        memory.search(QUERIES, k=1)
    with FaissMemory(folder) as memory:
        assert [hits[0].id for hits in memory.search(unit(2, 5), k=1)] == [f"d{i}" for i in range(200, 205)]


def killed(folder):
    """A memory whose writer was killed: what it wrote is in the log."""
    shutil.rmtree(folder, ignore_errors=True)
    python(
        """
        memory = FaissMemory(folder)
        memory.bind(ENCODER)
        memory.add(texts(30), unit(0, 30))
        memory.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        folder,
    )
    assert (folder / "memory.db-wal").stat().st_size


@pytest.mark.parametrize("read_only", [True, False])
def test_an_empty_database_does_not_cost_the_log_beside_it(tmp_path, read_only):
    killed(tmp_path / "memory")
    whole, log = tmp_path / "memory" / "memory.db", tmp_path / "memory" / "memory.db-wal"
    data, logged = whole.read_bytes(), log.read_bytes()
    whole.write_bytes(b"")
    with pytest.raises(MemoryCorrupt, match="is empty, although there is a log"):
        FaissMemory(tmp_path / "memory", read_only=read_only)
    assert log.read_bytes() == logged
    whole.write_bytes(data)
    with FaissMemory(tmp_path / "memory") as memory:
        assert len(memory) == 30


@pytest.mark.parametrize("read_only", [True, False])
def test_a_memory_of_which_all_is_lost_with_its_log_is_not_taken_for_a_new_one(tmp_path, read_only):
    killed(tmp_path / "memory")
    (tmp_path / "memory" / "memory.db-wal").unlink()
    with pytest.raises(MemoryCorrupt, match="is empty, although there is an index of its documents"):
        FaissMemory(tmp_path / "memory", read_only=read_only)


def test_what_was_lost_with_a_log_is_told(folder, caplog):
    python(
        """
        memory = FaissMemory(folder)
        memory.add(texts(5, start=100), unit(1, 5))
        memory.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        folder,
    )
    (folder / "memory.db-wal").unlink()
    lost = "has come further than the database (25 additions, 0 removals; 20 and 0)"
    with FaissMemory(folder, read_only=True) as memory:
        assert lost in memory.verify()[0] and len(memory) == 20
    assert not caplog.messages
    with FaissMemory(folder) as memory:
        assert lost in caplog.text and memory.verify() == []


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_nothing_is_written_to_a_database_that_is_not_in_its_place_any_more(folder, tmp_path, what):
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    with FaissMemory(folder) as memory:
        memory.delete(["d1"])
        if what == "removed":
            shutil.rmtree(folder)
        else:
            os.replace(backup / "memory.db", folder / "memory.db")
        for change in CHANGES:
            with pytest.raises(MemoryStoreError, match="was removed, or replaced by another one, since it was opened"):
                change(memory)
        assert memory.stats()["documents"] == 19


def test_a_snapshot_that_cannot_be_written_loses_nothing(folder, monkeypatch):
    memory = FaissMemory(folder)
    memory.add(texts(1, start=100), unit(1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(28))
        with pytest.raises(MemoryStoreError, match="No document is lost"):
            memory.flush()
        memory.close()
    assert not list(folder.glob("*.part"))
    with FaissMemory(folder) as memory:
        assert len(memory) == 21 and memory.search(unit(1, 1), k=1)[0][0].id == "d100"


# Damage


def corrupted(folder, statement, *parameters):
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        assert connection.execute(statement, parameters).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE contents SET data = CAST('other' AS BLOB) WHERE key = 6",
        "UPDATE contents SET data = x'ff' WHERE key = 6",
        "UPDATE contents SET data = 'text 5' WHERE key = 6",
        "UPDATE contents SET is_image = 1 WHERE key = 6",
        "UPDATE parts SET content = 7 WHERE seq = 6",
        "UPDATE parts SET content = 99 WHERE seq = 6",
        "DELETE FROM contents WHERE key = 6",
        "DELETE FROM parts WHERE seq = 6",
        "UPDATE documents SET metadata = CAST('{\"i\":6}' AS BLOB) WHERE seq = 6",
        "UPDATE documents SET metadata = '{\"i\":5}' WHERE seq = 6",
        "UPDATE documents SET metadata = CAST(x'ff' AS TEXT) WHERE seq = 6",
        "UPDATE documents SET metadata = 7 WHERE seq = 6",
        "UPDATE documents SET vector = zeroblob(16) WHERE seq = 6",
        "UPDATE documents SET content_hash = 'abc' WHERE seq = 6",
        "UPDATE documents SET content_hash = zeroblob(32) WHERE seq = 6",
    ],
)
def test_a_damaged_document_is_named_and_the_others_can_be_read(folder, statement):
    corrupted(folder, statement)
    with FaissMemory(folder) as memory:
        with pytest.raises(MemoryCorrupt, match="'d5' does not match its checksum"):
            memory.get(["d5"])
        with pytest.raises(MemoryCorrupt, match="'d5'"):
            list(memory.items())
        assert memory.get(["d4", "d6"]) == [texts(7)[4], texts(7)[6]]
        assert memory.delete(["d5"]) == 1
        assert len(list(memory.items())) == 19


def test_a_text_is_read_by_its_hash_and_its_checksum_is_verified_besides(folder):
    corrupted(folder, "UPDATE contents SET checksum = x'00' WHERE key = 6")
    with FaissMemory(folder) as memory:
        assert memory.get(["d5"]) == [texts(6)[5]]
        assert any("'d5' does not match its checksum" in problem for problem in memory.verify())


def test_numbers_of_documents_that_are_none_are_told(folder):
    with FaissMemory(folder) as memory:
        memory.add([Document("tagged", id="tagged", metadata={"a": 1})], unit(1, 1))
    corrupted(folder, "UPDATE tags SET seq = 'abc' WHERE seq = 21")
    with FaissMemory(folder) as memory, pytest.raises(MemoryCorrupt, match="the numbers of its documents"):
        memory.search(QUERIES, k=1, where={"a": 1})


def test_a_damaged_vector_never_enters_the_index(folder):
    corrupted(folder, "UPDATE documents SET vector = zeroblob(16) WHERE seq = 6")
    (folder / "index.json").unlink()
    with FaissMemory(folder) as memory:
        with pytest.raises(MemoryCorrupt, match="'d5'"):
            answer(memory)
        memory.delete(["d5"])
        assert answer(memory)


def test_a_damaged_image_is_named(folder):
    with FaissMemory(folder) as memory:
        memory.add([Document(Image(np.zeros((3, 3, 3), np.uint8)), id="black")], unit(1, 1))
    corrupted(folder, "UPDATE contents SET data = CAST('x' AS BLOB) WHERE is_image")
    with FaissMemory(folder) as memory:
        hit = memory.search(unit(1, 1), k=1)[0][0]
        with pytest.raises(MemoryCorrupt, match="'black'"):
            _ = hit.document


@pytest.mark.parametrize("damage", ["data = x'00'", "checksum = x'00'", "is_image = NOT is_image"])
def test_adding_what_was_damaged_mends_it(folder, damage):
    black = Document(["black", Image(np.zeros((3, 3, 3), np.uint8))], id="black")
    with FaissMemory(folder) as memory:
        memory.add([black], unit(1, 1))
    for key in (21, 22):
        corrupted(folder, f"UPDATE contents SET {damage} WHERE key = {key}")
    with FaissMemory(folder) as memory:
        memory.add([black.replace(id="again")], unit(2, 1))
        assert [document.parts for document in memory.get(["black", "again"])] == [black.parts, black.parts]


def test_images_are_stored_once_and_leave_with_their_last_document(tmp_path):
    image = Image(np.zeros((3, 3, 3), np.uint8))
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add([Document([text, image], id=text, metadata={"l": [text, 1], "n": 1}) for text in "abc"], unit(0, 3))

        def rows(statement):
            connection = sqlite3.connect(tmp_path / "memory.db")
            found = connection.execute(statement).fetchall()
            connection.close()
            return found

        images = "SELECT count(*) FROM contents WHERE is_image"
        assert rows(images) == [(1,)]
        memory.delete(["a", "b"])
        assert rows(images) == [(1,)]
        memory.delete(["c"])
        for table in ("contents", "parts", "fields", "tags", "documents"):  # nothing stays behind
            assert rows(f"SELECT * FROM {table}") == []


def a_file(path):
    path.write_text("hello")


def another_program(path):
    path.mkdir()
    connection = sqlite3.connect(path / "memory.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def not_a_database(path):
    path.mkdir()
    (path / "memory.db").write_bytes(b"this is no database" * 100)


def other_files(path):
    path.mkdir()
    (path / "chroma.sqlite3").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (a_file, MemoryStoreError, "is a file"),
        (another_program, MemoryCorrupt, "another program"),
        (not_a_database, MemoryCorrupt, "not a memory"),
        (other_files, MemoryCorrupt, "holds files, but no memory"),
    ],
)
def test_what_is_not_a_memory_is_left_alone(tmp_path, make, error, message):
    path = tmp_path / "place"
    make(path)
    before = sorted(path.rglob("*")), path.is_file()
    for read_only in (False, True):
        if read_only and make is other_files:
            continue
        with pytest.raises(error, match=message):
            FaissMemory(path, read_only=read_only)
    assert (sorted(path.rglob("*")), path.is_file()) == before


def test_another_format_and_a_missing_memory_are_errors(folder, tmp_path):
    for version, message in [(99, r"format 99.*Upgrade racm3"), (1, r"format 1;.*to a new memory")]:
        connection = sqlite3.connect(folder / "memory.db")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        with pytest.raises(MemoryStoreError, match=message):
            FaissMemory(folder)
    with pytest.raises(MemoryStoreError, match="There is no memory"):
        FaissMemory(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "encoder", [None, 5, Encoder("", 4), Encoder(None, 4), Encoder("\ud800", 4), Encoder("e", 0), Encoder("e", -3),
                Encoder("e", 2.5), Encoder("e", True), Encoder("e", "8"), Encoder("e", None), Encoder("e", 10**30)],
)  # fmt: skip
def test_what_is_no_encoder_binds_nothing(tmp_path, encoder):
    with FaissMemory(tmp_path) as memory:
        with pytest.raises(MemoryStoreError, match=r"of an encoder|bound to an Encoder"):
            memory.bind(encoder)
        memory.bind(ENCODER)
    with FaissMemory(tmp_path) as memory:
        assert memory.encoder == ENCODER


@pytest.mark.parametrize("path", [5, b"x", "a\0b", "\ud800"])
def test_a_path_that_is_none_is_an_error_of_ours(path):
    with pytest.raises(MemoryStoreError):
        FaissMemory(path)


def test_the_encoder_is_remembered(folder):
    with FaissMemory(folder) as memory, pytest.raises(EncoderMismatch, match=r"encoder e .*not by other"):
        memory.bind(Encoder("other", DIM))


# Folders that cannot be written


@pytest.mark.parametrize("exported", [True, False], ids=["exported", "as it was closed"])
def test_a_memory_in_a_folder_without_write_access_opens_read_only(folder, expected, exported):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        for path in folder.iterdir():
            shutil.copy(path, place)
        if exported:
            with FaissMemory(folder) as memory:
                memory.export_read_only(Path(place, "exported"))
        done = python(
            """
            import faiss
            folder.chmod(0o755)
            for path in [*folder.rglob("*"), folder]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            if os.getuid() == 0:
                os.setuid(65534)  # write protection means nothing to root
            with FaissMemory(Path(*sys.argv[1:])) as memory:
                assert memory.read_only
                try:
                    memory.add(texts(1, start=77), unit(1, 1))
                except MemoryLocked:
                    print(json.dumps(answer(memory)))
            """,
            place,
            *["exported"] * exported,
        )
        for path in [Path(place), *Path(place).rglob("*")]:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [[tuple(hit) for hit in hits] for hits in json.loads(done.stdout)] == expected


def test_a_memory_that_was_taken_never_to_change_says_so_when_it_does(folder, expected, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        reader = FaissMemory(folder)
    assert reader.read_only and answer(reader) == expected
    with FaissMemory(folder) as owner:
        assert answer(reader) == answer(owner) == expected  # nothing is written yet
        owner.add(texts(1, start=100), unit(1, 1))
        with pytest.raises(MemoryStoreError, match="has been written to since it was opened"):
            answer(reader)
    with pytest.raises(MemoryStoreError, match="has been written to"):
        len(reader)
    reader.close()
    with FaissMemory(folder) as memory:
        assert len(memory) == 21


def test_any_number_of_documents_can_be_removed_at_once(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(ENCODER)
        memory.add(texts(1300), unit(0, 1300))
        memory.add(texts(1200), unit(1, 1200), on_duplicate="replace")
        assert len(memory) == 1300
        assert memory.delete([f"d{i}" for i in range(1250)]) == 1250
        assert {hit.id for hit in memory.search(QUERIES[:1], k=99)[0]} == {f"d{i}" for i in range(1250, 1300)}
        assert memory.stats()["texts"] == 50 and memory.verify() == []


def test_a_database_that_was_emptied_is_not_taken_for_a_new_one(folder, tmp_path):
    (folder / "memory.db").write_bytes(b"")
    with pytest.raises(MemoryCorrupt, match=r"is empty, although there is an index .*backup"):
        FaissMemory(folder)
    assert (folder / "index.json").exists()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "memory.db").write_bytes(b"")  # killed as it was made
    with FaissMemory(tmp_path / "begun") as memory:
        assert len(memory) == 0
