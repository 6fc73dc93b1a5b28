"""A bit that has flipped in SQLite's log is told, and what a killed process or a power failure leaves is not."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3

import numpy as np
import pytest

from racm3.document import Document
from racm3.errors import MemoryCorrupt
from racm3.interfaces import Encoder
from racm3.memories.database import PAGE
from racm3.memories.faiss import FaissMemory
from racm3.memories.folder import DATABASE, LOCK, log_of
from racm3.memories.log import FRAME, HEADER, check

SIZE = FRAME + PAGE


def add(memory, *numbers):
    vectors = np.eye(4, dtype=np.float32)[[number % 4 for number in numbers]]
    memory.add([Document(f"text {number}", id=f"d{number}") for number in numbers], vectors)


@pytest.fixture
def killed(tmp_path):
    """The folder of a memory whose process ended before it closed it, with three additions in its log."""
    with FaissMemory(tmp_path / "alive") as memory:
        memory.bind(Encoder("e", 4))
        for number in range(3):
            add(memory, number)
        shutil.copytree(tmp_path / "alive", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
    return tmp_path / "killed"


def told(folder):
    try:
        check(log_of(folder / DATABASE), folder / LOCK)
    except MemoryCorrupt:
        return True
    return False


def flip(log, data, bit):
    log.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])


def test_every_flipped_bit_is_told(killed):
    log = log_of(killed / DATABASE)
    data, draw = log.read_bytes(), random.Random(0)
    frames = (len(data) - HEADER) // SIZE
    heads = [8 * (HEADER + frame * SIZE) + bit for frame in (0, frames - 1) for bit in range(8 * FRAME)]
    silent = []
    for bit in [*range(8 * HEADER), *heads, *draw.sample(range(8 * len(data)), 300)]:
        flip(log, data, bit)
        if not told(killed):
            silent.append(bit)
    assert silent == []


def test_it_is_told_when_the_memory_is_opened_and_what_was_stored_before_can_be_had(killed):
    log = log_of(killed / DATABASE)
    data = log.read_bytes()
    flip(log, data, 8 * (len(data) - 100))  # in the last addition
    for _ in range(2):  # saying so changes nothing
        with pytest.raises(MemoryCorrupt, match="flipped") as raised:
            FaissMemory(killed)
        with pytest.raises(MemoryCorrupt, match="flipped"):
            FaissMemory(killed, read_only=True)
    sound = int(re.search(r"behind (\d+) bytes", raised.value.hint)[1])
    os.truncate(log, sound)
    with FaissMemory(killed) as memory:
        assert len(memory) == 2 and memory.verify() == []
        add(memory, 2)


def test_the_order_in_which_checksums_take_bytes_can_be_the_other(tmp_path):
    """As on a machine that stores numbers the other way round; SQLite itself takes either."""
    path = tmp_path / DATABASE
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE one (value)")
    log = log_of(path)
    data = bytearray(log.read_bytes())
    data[3] ^= 1  # the last bit of the magic number
    size, sums = FRAME + 4096, (0, 0)
    places = [(0, range(24), 24)]
    for start in range(HEADER, len(data), size):
        places.append((start, [*range(start, start + 8), *range(start + FRAME, start + size)], start + 16))
    for _, summed, at in places:
        taken = np.array(data, np.uint8)[list(summed)].view(">u4").tolist()
        for x, y in zip(taken[::2], taken[1::2], strict=True):
            first = (sums[0] + x + sums[1]) % 2**32
            sums = first, (sums[1] + y + first) % 2**32
        data[at : at + 8] = b"".join(one.to_bytes(4, "big") for one in sums)
    connection.close()
    log.write_bytes(data)
    assert not told(tmp_path)
    for bit in (8 * 100, 8 * (len(data) - 1)):
        flip(log, bytes(data), bit)
        assert told(tmp_path)


def test_what_was_torn_is_no_flipped_bit(killed):
    log = log_of(killed / DATABASE)
    data, draw = log.read_bytes(), random.Random(0)
    for _ in range(100):
        at = draw.randrange(HEADER, len(data) - 512)
        log.write_bytes(data[:at] + draw.choice([b"", bytes(512), draw.randbytes(512)]) + data[at + 512 :])
        assert not told(killed)


def test_an_earlier_log_behind_this_one_is_no_flipped_bit(tmp_path):
    with FaissMemory(tmp_path) as memory:
        memory.bind(Encoder("e", 4))
        for number in range(60):
            add(memory, number)
        memory._journal.connection.execute("PRAGMA wal_checkpoint(RESTART)")
        add(memory, 60)  # at the beginning of the log, before what is left of the one before it
        assert not told(tmp_path)
        assert memory.verify() == []


def test_nothing_is_said_of_a_log_that_is_being_written(killed):
    with FaissMemory(killed) as memory:
        add(memory, 3)
        log = log_of(killed / DATABASE)
        flip(log, log.read_bytes(), 8 * (log.stat().st_size - 100))
        assert not told(killed)
