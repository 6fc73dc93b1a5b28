"""A real Chroma server, on a port of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that ends with the tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, log = tmp_path_factory.mktemp("chroma"), tmp_path_factory.mktemp("chroma-log") / "log"
    program = Path(sys.executable).with_name("chroma")
    with log.open("w") as said:
        server = subprocess.Popen(
            [str(program), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)],
            stdout=said, stderr=said, cwd=folder,
        )  # fmt: skip
    try:
        _wait(server, f"http://127.0.0.1:{port}/api/v2/heartbeat", log)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"The server did not answer: {log.read_text()}")
