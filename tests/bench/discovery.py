"""What finding plugins costs: python tests/bench/discovery.py [--plugins 50] [--pairs 15]

Each run is a fresh interpreter, measured beside one that does nothing: medians of the differences, in milliseconds, of
wall clock and of processor time; and the least processor time of all runs, since a busy machine can only add to it.
"discovery" imports the registry and finds all; "call" is `registry()` alone, with the registry imported before. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HEAVY = ("torch", "faiss", "transformers", "open_clip", "diffusers", "chromadb", "numpy", "PIL", "pydantic")
PLUGIN = """from racm3 import Component, Retriever, hookimpl

@hookimpl
def racm3_components():
    yield Component(Retriever, "hashing{number}", "racm3.testing:HashingRetriever", summary="words and colours")
"""
REGISTRY = "from racm3.registry import registry\n"
CALL = REGISTRY + (
    "import time; wall, cpu = time.perf_counter(), time.process_time()\n"
    "registry()\n"
    "print(time.perf_counter() - wall, time.process_time() - cpu)"
)
CHECK = REGISTRY + (
    "import sys; found = registry().plugins()\n"
    "print(sum(info.distribution.startswith('racm3-bench-') and info.status == 'ok' for info in found), *sys.modules)"
)


def write_plugins(site: Path, count: int) -> None:
    """Distributions as pip leaves them, each a module with one component."""
    for number in range(count):
        module = f"racm3_bench_{number}"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        name = module.replace("_", "-")
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nRequires-Dist: racm3>=0.1,<0.2\n\n"
            + "A README.\n" * 100
        )
        (info / "entry_points.txt").write_text(f"[racm3]\nbench{number} = {module}\n")
        (site / f"{module}.py").write_text(PLUGIN.format(number=number))


def run(code: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of wall clock and of processor time that a fresh interpreter takes."""
    arguments = [sys.executable, "-W", "ignore", "-c", code]
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, arguments, environment)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{code!r} failed.")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugins", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        write_plugins(site, given.plugins)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RACM3_", "PYTHONDONTWRITE"))}
        path = os.pathsep.join(filter(None, [str(site), kept.get("PYTHONPATH")]))
        # Compiled once, as after an installation.
        environment = {**kept, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(Path(folder) / "cache")}

        def output(code: str) -> list[str]:
            arguments = [sys.executable, "-W", "ignore", "-c", code]
            return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout.split()

        found, *modules = output(CHECK)
        assert int(found) == given.plugins, f"{found} of {given.plugins} plugins were found"
        runs = {"start": "pass", "import": REGISTRY, "discovery": REGISTRY + "registry()"}
        for code in runs.values():
            run(code, environment)
        seconds = [{name: run(code, environment) for name, code in runs.items()} for _ in range(given.pairs)]
        calls = [[float(value) for value in output(CALL)] for _ in range(given.pairs)]
    report: dict[str, object] = {"plugins": given.plugins, "pairs": given.pairs, "load": os.getloadavg()[0]}
    for column, clock in enumerate(("wall_ms", "cpu_ms")):
        report[clock] = {
            "start": round(1e3 * median(pair["start"][column] for pair in seconds), 1),
            **{
                name: round(1e3 * median(pair[name][column] - pair["start"][column] for pair in seconds), 1)
                for name in ("import", "discovery")
            },
            "call": round(1e3 * median(call[column] for call in calls), 1),
        }
    least = {name: min(pair[name][1] for pair in seconds) for name in runs}
    report["least_cpu_ms"] = {
        "start": round(1e3 * least["start"], 1),
        **{name: round(1e3 * (least[name] - least["start"]), 1) for name in ("import", "discovery")},
        "call": round(1e3 * min(call[1] for call in calls), 1),
    }
    report["heavy_imports"] = sorted(set(HEAVY) & set(modules))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
