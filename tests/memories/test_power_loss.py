"""What survives a power failure: the short run of tests/bench/power_loss.py, which looks at thousands of disks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "power_loss.py"


def can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_trace(), reason="needs strace, and leave to trace")

# What a program does with a file in a new folder, and what the file can hold afterwards; None: it is not there.
SYNCED_NAME = "f = os.open(folder, 0); os.fsync(f)"
DISKS = {
    "nothing synced": ("w(a, b'one')", {None, b"", b"one"}, {None, b"", b"one"}),
    "its bytes": ("w(a, b'one', sync=True)", {None, b"one"}, {b"one"}),
    "its name": (f"w(a, b'one'); {SYNCED_NAME}", {b"", b"one"}, {b"", b"one"}),
    "both": (f"w(a, b'one', sync=True); {SYNCED_NAME}", {b"one"}, {b"one"}),
    "both, then renamed over": (
        f"w(a, b'one', sync=True); {SYNCED_NAME}; w(b, b'two'); os.replace(b, a)",
        {b"one", b"", b"two"},
        {b"one", b"two"},
    ),
    "both, then renamed over with its bytes": (
        f"w(a, b'one', sync=True); {SYNCED_NAME}; w(b, b'two', sync=True); os.replace(b, a)",
        {b"one", b"two"},
        {b"one", b"two"},
    ),
    "both, then removed": (f"w(a, b'one', sync=True); {SYNCED_NAME}; os.unlink(a)", {None, b"one"}, {None, b"one"}),
    "both, then written again": (
        f"w(a, b'one', sync=True); {SYNCED_NAME}; w(a, b'two')",
        {b"one", b"", b"two"},
        {b"one", b"", b"two"},
    ),
}
PROGRAM = """
import os, sys
folder = sys.argv[1]
a, b = folder + "/a", folder + "/b"
def w(name, data, sync=False):
    f = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(f, data)
    if sync: os.fsync(f)
"""


@pytest.mark.parametrize("synced", DISKS)
def test_a_disk_holds_what_was_synced_and_any_part_of_the_rest(tmp_path, monkeypatch, synced):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import crash_states
    import recording
    import strace

    program, *expected = DISKS[synced]
    folder = tmp_path / "disk"
    folder.mkdir()
    strace.record([sys.executable, "-S", "-c", PROGRAM + program, folder], tmp_path / "log")
    recorded = recording.parse(tmp_path / "log", folder, tmp_path / "words")
    assert recording.differences(recorded, folder) == []
    disk, draw = crash_states.Disk(recorded), random.Random(0)
    for rules, possible in zip(crash_states.MODELS, expected, strict=True):
        found = {disk.after(disk.moments[-1], rules, draw).get("a") for _ in range(300)}
        # Room that was set aside shows as zeros.
        assert {one and one.strip(b"\0") for one in found} == possible


def test_a_memory_keeps_what_it_acknowledged_when_the_power_fails(tmp_path):
    report = tmp_path / "report.json"
    stores = ["--store", "racm3, everything", "--store", "racm3, durable=False"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *stores, "--states", "15", "--out", report],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    durable, relaxed = found["racm3, everything"], found["racm3, durable=False"]
    for rules in ("posix", "ext4"):
        assert durable[rules]["states"] == 15 and durable[rules]["lost"] == durable[rules]["failed"] == 0
    # Nothing is lost for lack of looking: where less is promised, what was not synced is gone.
    assert relaxed["posix"]["lost"] > 0
