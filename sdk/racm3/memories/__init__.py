"""Memories: where documents live with their vectors. `faiss` is the default; see `racm3.interfaces.MemoryStore`."""
