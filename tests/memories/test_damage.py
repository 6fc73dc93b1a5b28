"""What becomes of damaged files: short runs of the scripts in tests/bench that change them at random, and bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched by what Linux says of them")


def run(script, report, *options):
    done = subprocess.run(
        [sys.executable, BENCH / script, *options, "--out", report], capture_output=True, text=True, timeout=300
    )
    assert report.exists(), done.stderr
    return json.loads(report.read_text()), done.returncode


@linux
def test_damaged_files_give_right_answers_or_errors_of_ours(tmp_path):
    found, status = run("memory_fuzz.py", tmp_path / "report.json", "--cases", "400")
    findings = [one for target in found.values() if isinstance(target, dict) for one in target["findings"]]
    assert findings == [] and status == 0
    assert found["cases"] == 400
    for name in ("stores", "rows", "images", "imports"):
        assert found[name]["outcomes"]["sound"] and len(found[name]["outcomes"]) > 1


@linux
def test_flipped_bits_are_told_or_meant_nothing(tmp_path):
    found, status = run("memory_rot.py", tmp_path / "report.json", "--bits", "12")
    assert found["wrong"] == status == 0
    for name, file in found.items():
        if isinstance(file, dict) and "memory.db" not in name:
            assert file["counts"] == {"told": 12}, name
    assert found["closed: memory.db"]["counts"].keys() <= {"told", "no data", "as it was"}


@linux
def test_readers_see_whole_batches_of_a_writer_that_is_killed(tmp_path):
    found, status = run("memory_readers.py", tmp_path / "report.json", "--minutes", "0.06", "--kill", "1")
    assert found["wrong"] == [] and status == 0
    writer, *readers = found["processes"]
    assert len(readers) == 4 and writer["ticks"] > 0
