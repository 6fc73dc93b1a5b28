"""The stores of power_loss.py, each in the way that its documentation shows, behind the same few methods.

`put` stores documents that are new, `replace` those that are there, `save` is what a store has for bringing everything to
the disk. What is stored is (name, version): a text of 2 KB and a vector made from it. `contents` says which version of each
document there is, and -1 where the text or the vector is none that was ever stored under that name.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from memory_steps import DIM, ENCODER, State, document, seen, vectors


class Store(ABC):
    """folder: has been on the disk for long, so that none has to see to it."""

    package: str
    first = 0  # documents that are stored before the work begins

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def put(self, state: State) -> None: ...

    @abstractmethod
    def replace(self, state: State) -> None: ...

    @abstractmethod
    def delete(self, names: tuple[str, ...]) -> None: ...

    def save(self) -> None:  # noqa: B027  # by itself each call is meant to do it
        ...

    @abstractmethod
    def contents(self) -> State: ...

    @abstractmethod
    def nearest(self, vector: np.ndarray, k: int) -> list[str]: ...

    @abstractmethod
    def close(self) -> None: ...

    @classmethod
    def version(cls) -> str | None:
        """None when it is not installed."""
        try:
            return version(cls.package)
        except PackageNotFoundError:
            return None


def text(name: str, version: int) -> str:
    draw = random.Random(zlib.crc32(f"{name} {version}".encode()))
    return json.dumps({"name": name, "version": version, "text": draw.randbytes(1000).hex()})


def version_of(name: str, found: object, vector: Any) -> int:
    """Which version of a document a text and a vector are; -1: none."""
    try:
        version = int(json.loads(str(found))["version"])
        same = found == text(name, version) and np.allclose(vector, vectors({name: version})[0], atol=1e-6)
    except (ValueError, KeyError, TypeError):
        return -1
    return version if same else -1


class Racm3(Store):
    package, durable = "racm3", True

    def __init__(self, folder: Path) -> None:
        from racm3.memories.faiss import FaissMemory

        self.memory = FaissMemory(folder / "memory", durable=self.durable)
        self.memory.bind(ENCODER)

    def put(self, state: State) -> None:
        self.memory.add([document(*one) for one in state.items()], vectors(state))

    def replace(self, state: State) -> None:
        self.memory.add([document(*one) for one in state.items()], vectors(state), on_duplicate="replace")

    def delete(self, names: tuple[str, ...]) -> None:
        self.memory.delete(names)

    def contents(self) -> State:
        return seen(self.memory)

    def nearest(self, vector: np.ndarray, k: int) -> list[str]:
        return [hit.id for hit in self.memory.search(vector[None], k=k)[0]]

    def close(self) -> None:
        self.memory.close()


class Racm3Relaxed(Racm3):
    durable = False


class Chroma(Store):
    """chromadb's PersistentClient. It has no call that brings anything to the disk: each is meant to be there."""

    package = "chromadb"

    def __init__(self, folder: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        self.client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
        self.collection = self.client.get_or_create_collection(
            "documents",
            embedding_function=None,
            configuration={"hnsw": {"space": "ip"}},
        )

    @staticmethod
    def _rows(state: State) -> dict[str, Any]:
        return {"ids": [*state], "embeddings": vectors(state), "documents": [text(*one) for one in state.items()]}

    def put(self, state: State) -> None:
        self.collection.add(**self._rows(state))

    def replace(self, state: State) -> None:
        self.collection.update(**self._rows(state))

    def delete(self, names: tuple[str, ...]) -> None:
        self.collection.delete(ids=list(names))

    def contents(self) -> State:
        found = self.collection.get(include=["documents", "embeddings"])
        rows = zip(found["ids"], found["documents"] or [], found["embeddings"], strict=True)  # type: ignore[arg-type]
        return {name: version_of(name, told, vector) for name, told, vector in rows}

    def nearest(self, vector: np.ndarray, k: int) -> list[str]:
        return self.collection.query(query_embeddings=vector[None], n_results=k, include=[])["ids"][0]

    def close(self) -> None:
        self.client.close()


class ChromaGrown(Chroma):
    """Its graph comes to the disk with every 1,000 changes, which the others' work does not reach."""

    first = 980


class Lance(Store):
    """lancedb. It has no call that brings anything to the disk: each is a commit."""

    package = "lancedb"

    def __init__(self, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        self.schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), DIM)), ("text", pa.string())])
        database = lancedb.connect(folder)
        if "documents" in database.list_tables().tables:
            self.table = database.open_table("documents")
        else:
            self.table = database.create_table("documents", schema=self.schema)

    def _rows(self, state: State) -> Any:
        import pyarrow as pa

        rows = zip(state.items(), vectors(state), strict=True)
        return pa.Table.from_pylist(
            [{"id": one[0], "vector": vector, "text": text(*one)} for one, vector in rows], schema=self.schema
        )

    def put(self, state: State) -> None:
        self.table.add(self._rows(state))

    def replace(self, state: State) -> None:
        self.table.merge_insert("id").when_matched_update_all().execute(self._rows(state))

    def delete(self, names: tuple[str, ...]) -> None:
        self.table.delete(f"id IN ({', '.join(repr(name) for name in names)})")

    def contents(self) -> State:
        rows = self.table.to_arrow().to_pylist()
        return {row["id"]: version_of(row["id"], row["text"], row["vector"]) for row in rows}

    def nearest(self, vector: np.ndarray, k: int) -> list[str]:
        return [row["id"] for row in self.table.search(vector).distance_type("dot").limit(k).to_list()]

    def close(self) -> None:
        del self.table


class Milvus(Store):
    """milvus-lite behind pymilvus."""

    package = "milvus-lite"
    fields = ["id", "vector", "text"]  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        from pymilvus import DataType, MilvusClient

        self.path = str(folder)
        self.client = MilvusClient(self.path)
        if not self.client.has_collection("documents"):
            schema = self.client.create_schema(auto_id=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
            schema.add_field("text", DataType.VARCHAR, max_length=65535)
            index = self.client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            self.client.create_collection("documents", schema=schema, index_params=index)
        self.client.load_collection("documents")

    @staticmethod
    def _rows(state: State) -> list[dict[str, Any]]:
        rows = zip(state.items(), vectors(state), strict=True)
        return [{"id": one[0], "vector": vector.tolist(), "text": text(*one)} for one, vector in rows]

    def put(self, state: State) -> None:
        self.client.insert("documents", self._rows(state))

    def replace(self, state: State) -> None:
        self.client.upsert("documents", self._rows(state))

    def delete(self, names: tuple[str, ...]) -> None:
        self.client.delete("documents", ids=list(names))

    def contents(self) -> State:
        rows = self.client.query("documents", filter="id != ''", output_fields=self.fields)
        return {row["id"]: version_of(row["id"], row["text"], row["vector"]) for row in rows}

    def nearest(self, vector: np.ndarray, k: int) -> list[str]:
        return [hit["id"] for hit in self.client.search("documents", [vector.tolist()], limit=k)[0]]

    def close(self) -> None:
        from milvus_lite.server_manager import server_manager_instance

        self.client.close()
        server_manager_instance.release_server(self.path)


class MilvusFlushed(Milvus):
    def save(self) -> None:
        self.client.flush("documents")


class Plain(Store):
    """What one writes oneself: an index of FAISS and a list in JSON, both written again after every change."""

    package = "faiss-cpu"

    def __init__(self, folder: Path) -> None:
        import faiss

        self.files = folder / "documents.json", folder / "vectors.faiss"
        self.texts: dict[str, str] = {}
        self.index = faiss.IndexFlatIP(DIM)
        if self.files[0].exists():
            self.texts = json.loads(self.files[0].read_text())
            self.index = faiss.read_index(str(self.files[1]))
            if self.index.ntotal != len(self.texts):
                raise ValueError("there are more texts than vectors, or fewer")

    def _keep(self, names: tuple[str, ...]) -> None:
        import faiss

        rows = self.index.reconstruct_n(0, self.index.ntotal)[[name not in names for name in self.texts]]
        self.texts = {name: one for name, one in self.texts.items() if name not in names}
        self.index = faiss.IndexFlatIP(DIM)
        self.index.add(rows)

    def put(self, state: State) -> None:
        self.texts.update({name: text(name, version) for name, version in state.items()})
        self.index.add(vectors(state))
        self._write()

    def replace(self, state: State) -> None:
        self._keep(tuple(state))
        self.put(state)

    def delete(self, names: tuple[str, ...]) -> None:
        self._keep(names)
        self._write()

    def _write(self) -> None:
        import faiss

        faiss.write_index(self.index, str(self.files[1]))
        self.files[0].write_text(json.dumps(self.texts))

    def contents(self) -> State:
        found = zip(self.texts.items(), self.index.reconstruct_n(0, self.index.ntotal), strict=True)
        return {name: version_of(name, told, vector) for (name, told), vector in found}

    def nearest(self, vector: np.ndarray, k: int) -> list[str]:
        names = [*self.texts]
        return [names[row] for row in self.index.search(vector[None], k)[1][0] if row >= 0]

    def close(self) -> None: ...


class PlainRenamed(Plain):
    """With more care: each file is written beside the old one and renamed over it."""

    def _write(self) -> None:
        targets = self.files
        self.files = tuple(target.with_name(f"{target.name}.new") for target in targets)  # type: ignore[assignment]
        super()._write()
        for new, target in zip(self.files, targets, strict=True):
            os.replace(new, target)
        self.files = targets


STORES: dict[str, type[Store]] = {
    "racm3": Racm3,
    "racm3, durable=False": Racm3Relaxed,
    "chromadb": Chroma,
    "chromadb, grown to 1,000 documents": ChromaGrown,
    "lancedb": Lance,
    "milvus-lite": Milvus,
    "milvus-lite, flush after each call": MilvusFlushed,
    "FAISS + JSON": Plain,
    "FAISS + JSON, renamed into place": PlainRenamed,
}
