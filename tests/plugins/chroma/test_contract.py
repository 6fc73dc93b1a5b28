"""Every rule of a memory, embedded and on a server that the tests start."""

from __future__ import annotations

import pytest

from racm3_chroma.contract import ChromaContract


class TestEmbedded(ChromaContract):
    pass


class TestOnAServer(ChromaContract):
    @pytest.fixture(autouse=True)
    def server(self, chroma_server: int) -> None:
        self.settings = {"host": "127.0.0.1", "port": chroma_server}
