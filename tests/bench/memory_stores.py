"""The stores of memory_speed.py, each behind the same few methods, used as its documentation says.

A document is given as a row number, a text, and two fields; the inner product of unit vectors says what is near.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from memory_data import DIM, Documents, Filter

Found = list[tuple[int, str]]  # rows and texts, best first


class Store(ABC):
    """folder: where it keeps what it has; it is there, and empty at first.

    packages: what is installed for it. modules: imported before anything is timed. batch: documents that it is given at
    a time. knobs: how widely it searches, cheapest first.
    """

    packages: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]
    batch: ClassVar[int] = 5000
    knobs: tuple[dict[str, int], ...] = ({},)
    persistent: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.knob = folder, self.knobs[-1]

    @classmethod
    def imports(cls) -> None:
        for module in cls.modules:
            importlib.import_module(module)

    @abstractmethod
    def create(self) -> None:
        """Begin with no documents."""

    @abstractmethod
    def open(self) -> None:
        """Open what `close` has left."""

    @abstractmethod
    def add(self, documents: Documents) -> None:
        """Returns when the store acknowledges them. Turning them into its own kind of documents is a part of it."""

    def index(self) -> None:  # noqa: B027
        """After bulk ingest: whatever makes searches quick."""

    def tune(self, knob: dict[str, int]) -> None:
        self.knob = knob

    @abstractmethod
    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        """The nearest of each query ([n, DIM]), with their texts."""

    @abstractmethod
    def close(self) -> None: ...


class Racm3(Store):
    """FaissMemory as it comes, its index being exact."""

    packages = ("racm3", "faiss-cpu")
    # The first exact search of many documents would import torch, and so be charged with it.
    modules = ("racm3", "racm3.memories.faiss", "faiss", "torch")
    kind = "exact"

    def create(self) -> None:
        from racm3.interfaces import Encoder

        self.open()
        self.memory.bind(Encoder("bench", DIM))

    def open(self) -> None:
        from racm3.memories.faiss import FaissMemory

        self.memory = FaissMemory(self.folder / "memory")

    def add(self, documents: Documents) -> None:
        from racm3.document import Document

        columns = zip(documents.rows, documents.texts, documents.topics, documents.recent, strict=True)
        made = [
            Document(text, id=str(row), metadata={"topic": topic, "recent": recent})
            for row, text, topic, recent in columns
        ]
        self.memory.add(made, documents.vectors)

    def index(self) -> None:
        if self.kind == "exact":
            self.memory.flush()
        else:
            self.memory.reindex(self.kind)

    def hits(self, vectors: np.ndarray, k: int, where: Filter | None = None) -> Any:
        return self.memory.search(vectors, k=k, where=None if where is None else {where[0]: where[1]})

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        return [[(int(hit.id), hit.document.texts[0]) for hit in hits] for hits in self.hits(vectors, k, where)]

    def close(self) -> None:
        self.memory.close()


class Racm3Hnsw(Racm3):
    """FaissMemory after `reindex("hnsw")`."""

    kind = "hnsw"


class Racm3Ivf(Racm3):
    """FaissMemory after `reindex("ivf")`."""

    kind = "ivf"


class Racm3IvfPq(Racm3):
    """FaissMemory after `reindex("ivf-pq")`."""

    kind = "ivf-pq"


class Chroma(Store):
    """Its defaults: a graph over the vectors, all fields indexed, and the texts for searching in them."""

    packages = ("chromadb",)
    modules = ("chromadb", "chromadb.config")
    knobs = tuple({"ef_search": ef} for ef in (10, 20, 40, 100, 200, 400, 800, 1600))

    def _client(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        return chromadb.PersistentClient(str(self.folder), settings=Settings(anonymized_telemetry=False))

    def create(self) -> None:
        self.client = self._client()
        self.batch = self.client.get_max_batch_size()  # type: ignore[misc]
        self.collection = self.client.create_collection(
            "bench", embedding_function=None, configuration={"hnsw": {"space": "ip"}}
        )

    def open(self) -> None:
        self.client = self._client()
        self.collection = self.client.get_collection("bench", embedding_function=None)

    def add(self, documents: Documents) -> None:
        fields = zip(documents.topics, documents.recent, strict=True)
        self.collection.add(
            ids=[str(row) for row in documents.rows],
            embeddings=documents.vectors,
            documents=documents.texts,
            metadatas=[{"topic": topic, "recent": recent} for topic, recent in fields],
        )

    def tune(self, knob: dict[str, int]) -> None:
        self.collection.modify(configuration={"hnsw": knob})
        self.close()  # an open index goes on with what it had
        self.open()

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        found = self.collection.query(
            query_embeddings=vectors,
            n_results=k,
            where=None if where is None else {where[0]: where[1]},
            include=["documents"],
        )
        return [
            [(int(id), text) for id, text in zip(*pair, strict=True)]
            for pair in zip(found["ids"], found["documents"], strict=True)
        ]

    def close(self) -> None:
        self.client.close()


class Lance(Store):
    """Its default kind of index, IVF-PQ, scored again by the vectors; and a bitmap for each field."""

    packages = ("lancedb",)
    modules = ("lancedb", "lancedb.index", "pyarrow")
    batch = 50_000
    knobs = tuple(
        {"nprobes": probes, "refine": refine}
        for probes, refine in ((5, 5), (20, 5), (5, 20), (20, 20), (80, 20), (20, 80), (80, 80), (320, 80))
    )

    def create(self) -> None:
        import lancedb
        import pyarrow as pa

        self.schema = pa.schema(
            {
                "id": pa.int64(),
                "text": pa.string(),
                "topic": pa.int64(),
                "recent": pa.bool_(),
                "vector": pa.list_(pa.float32(), DIM),
            }
        )
        self.table = lancedb.connect(str(self.folder)).create_table("bench", schema=self.schema)

    def open(self) -> None:
        import lancedb

        self.table = lancedb.connect(str(self.folder)).open_table("bench")
        self.schema = self.table.schema

    def add(self, documents: Documents) -> None:
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(documents.vectors.reshape(-1)), DIM)
        columns = [pa.array(documents.rows), documents.texts, documents.topics, documents.recent, vectors]
        self.table.add(pa.table(dict(zip(self.schema.names, columns, strict=True)), schema=self.schema))

    def index(self) -> None:
        from lancedb.index import Bitmap, IvfPq

        self.table.create_index("vector", config=IvfPq(distance_type="dot"))
        self.table.create_index("topic", config=Bitmap())
        self.table.create_index("recent", config=Bitmap())
        self.table.optimize()

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        answer = []
        for vector in vectors:
            query = self.table.search(vector).distance_type("dot").select(["id", "text", "_distance"]).limit(k)
            query = query.nprobes(self.knob["nprobes"]).refine_factor(self.knob["refine"])
            if where is not None:
                query = query.where(f"{where[0]} = {str(where[1]).lower()}", prefilter=True)
            found = query.to_arrow()
            answer.append(list(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True)))
        return answer

    def close(self) -> None:
        del self.table


class MilvusLite(Store):
    """A graph over the vectors, and an inverted index for each field."""

    packages = ("milvus-lite", "pymilvus")
    modules = ("pymilvus", "milvus_lite.server_manager")
    batch = 5000
    knobs = tuple({"ef": ef} for ef in (10, 20, 40, 80, 160, 320, 640, 1280))

    def create(self) -> None:
        from pymilvus import DataType, MilvusClient

        self.client = MilvusClient(str(self.folder / "bench.db"))
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=65_535)
        schema.add_field("topic", DataType.INT64)
        schema.add_field("recent", DataType.BOOL)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        self.client.create_collection("bench", schema=schema)

    def open(self) -> None:
        from pymilvus import MilvusClient

        self.client = MilvusClient(str(self.folder / "bench.db"))
        self.client.load_collection("bench")

    def add(self, documents: Documents) -> None:
        names = ("id", "text", "topic", "recent", "vector")
        self.client.insert("bench", [dict(zip(names, one, strict=True)) for one in zip(*documents, strict=True)])

    def index(self) -> None:
        self.client.flush("bench")
        indexes = self.client.prepare_index_params()
        indexes.add_index("vector", index_type="HNSW", metric_type="IP")
        indexes.add_index("topic", index_type="INVERTED")
        indexes.add_index("recent", index_type="INVERTED")
        self.client.create_index("bench", indexes)
        self.client.load_collection("bench")

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        found = self.client.search(
            "bench",
            data=vectors,
            limit=k,
            filter="" if where is None else f"{where[0]} == {str(where[1]).lower()}",
            output_fields=["text"],
            search_params={"metric_type": "IP", "params": self.knob},
        )
        return [[(hit["id"], hit["entity"]["text"]) for hit in hits] for hits in found]

    def close(self) -> None:
        self.client.close()


class Qdrant(Store):
    """Its local mode, which scans all vectors by numpy. Each point is a transaction of its own, however they come."""

    packages = ("qdrant-client",)
    modules = ("qdrant_client", "qdrant_client.local.qdrant_local")
    batch = 500

    def create(self) -> None:
        from qdrant_client import QdrantClient, models

        self.client = QdrantClient(path=str(self.folder / "qdrant"))
        space = models.VectorParams(size=DIM, distance=models.Distance.DOT)
        self.client.create_collection("bench", vectors_config=space)

    def open(self) -> None:
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(self.folder / "qdrant"))

    def add(self, documents: Documents) -> None:
        from qdrant_client.models import PointStruct

        points = [
            PointStruct(id=row, payload={"text": text, "topic": topic, "recent": recent}, vector=vector.tolist())
            for row, text, topic, recent, vector in zip(*documents, strict=True)
        ]
        self.client.upsert("bench", points)

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        from qdrant_client.models import FieldCondition, MatchValue
        from qdrant_client.models import Filter as Condition

        wanted = None
        if where is not None:
            wanted = Condition(must=[FieldCondition(key=where[0], match=MatchValue(value=where[1]))])
        return [
            [
                (point.id, point.payload["text"])
                for point in self.client.query_points("bench", query=vector, query_filter=wanted, limit=k).points
            ]
            for vector in vectors
        ]

    def close(self) -> None:
        self.client.close()


class LangChain(Store):
    """Its FAISS vector store. It keeps all in memory; what it saves is a pickle, which nothing here reads or writes."""

    packages = ("langchain-community", "faiss-cpu")
    modules = ("langchain_community.vectorstores", "langchain_community.vectorstores.faiss", "faiss")
    persistent = False

    def create(self) -> None:
        import faiss
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

        def no_encoder(text: str) -> list[float]:
            raise AssertionError("vectors are given")

        self.store = FAISS(no_encoder, faiss.IndexFlatIP(DIM), InMemoryDocstore(), {})

    def open(self) -> None:
        raise NotImplementedError

    def add(self, documents: Documents) -> None:
        metadatas = [
            {"topic": topic, "recent": recent} for topic, recent in zip(documents.topics, documents.recent, strict=True)
        ]
        pairs = zip(documents.texts, documents.vectors, strict=True)
        self.store.add_embeddings(pairs, metadatas, [str(row) for row in documents.rows])

    def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[Found]:
        # It looks at the fields of what it has found, so that nothing less than everything is sure to be enough.
        given = {} if where is None else {"filter": {where[0]: where[1]}, "fetch_k": self.store.index.ntotal}
        return [
            [
                (int(found.id), found.page_content)
                for found in self.store.similarity_search_by_vector(vector, k, **given)
            ]
            for vector in vectors
        ]

    def close(self) -> None:
        del self.store


STORES: dict[str, type[Store]] = {
    "racm3 exact": Racm3,
    "racm3 hnsw": Racm3Hnsw,
    "racm3 ivf": Racm3Ivf,
    "racm3 ivf-pq": Racm3IvfPq,
    "chromadb": Chroma,
    "lancedb": Lance,
    "milvus-lite": MilvusLite,
    "qdrant local": Qdrant,
    "LangChain FAISS": LangChain,
}


def named(names: Sequence[str]) -> list[str]:
    """The stores that are meant by their names, or else by how these begin."""
    whole = {name for name in STORES if name in names}
    begun = tuple(given.lower() for given in names if given not in STORES)
    return [name for name in STORES if name in whole or name.lower().startswith(begun)]
