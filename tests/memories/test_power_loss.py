"""What survives a power failure: the short run of tests/bench/power_loss.py, which looks at thousands of disks."""

from __future__ import annotations

import json
import os
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


@pytest.mark.skipif(not can_trace(), reason="needs strace, and leave to trace")
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
