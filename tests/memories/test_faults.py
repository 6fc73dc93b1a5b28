"""What survives kills and disks that fail: the short run of tests/bench/memory_faults.py, which does it at every call."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "memory_faults.py"


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_a_memory_is_whole_after_faults_and_kills(tmp_path):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--every", "31", "--moments", "10", "--out", report],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert report.exists(), done.stderr
    found = json.loads(report.read_text())
    assert found["wrong"] == [] and done.returncode == 0
    assert found["at_every_call"]["kill"] >= 10 and found["at_random_moments"]["moments"] == 10
