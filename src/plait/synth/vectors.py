"""Nearest neighbours of texts in Milvus: a file on this machine, or a server by its address.

Both are the same client; only the address differs. Inserting and searching go by batches: on
milvus-lite 3 one query costs nearly as much as fifty.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from plait.core.errors import ConfigError, EndpointError
from plait.core.progress import Progress

BATCH = 256
QUERIES_AT_ONCE = 50

Vectors = Callable[[Sequence[str]], Any]


class Snippets:
    """A collection of texts that can be searched by likeness."""

    def __init__(self, client: Any, collection: str, embed: Vectors) -> None:
        self._client, self._collection, self._embed = client, collection, embed

    def fill(self, texts: Sequence[str]) -> None:
        """Put texts in, numbered from 0; a collection that holds as many already is kept.

        The collection's name says what is in it, so the number is all that can be different.
        """
        client, name = self._client, self._collection
        if client.has_collection(name):
            client.load_collection(name)
            if self._count() == len(texts):
                return
            client.drop_collection(name)
        width = len(self._embed(["width"])[0])
        client.create_collection(
            name, dimension=width, metric_type="IP", consistency_level="Strong"
        )
        with Progress("embed snippets", len(texts), "snippets") as progress:
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                vectors = self._embed(batch)
                rows = [
                    {"id": number, "vector": vector.tolist()}
                    for number, vector in enumerate(vectors, start)
                ]
                client.insert(name, rows)
                progress.advance(len(batch))

    def nearest(self, queries: Sequence[str], count: int) -> Iterator[list[int]]:
        """Yield for each query the numbers of the `count` texts most like it, nearest first."""
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = queries[start : start + QUERIES_AT_ONCE]
            vectors = [vector.tolist() for vector in self._embed(batch)]
            for hits in self._client.search(self._collection, vectors, limit=count):
                yield [hit["id"] for hit in hits]

    def _count(self) -> int:
        [row] = self._client.query(self._collection, output_fields=["count(*)"])
        return int(row["count(*)"])


@contextmanager
def open_snippets(address: str, collection: str, embed: Vectors) -> Iterator[Snippets]:
    """Open a collection in Milvus: `address` is a path that ends in .db, or http://host:port.

    Raises: ConfigError if the file is in use by another process, EndpointError if the server does
    not answer.
    """
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise ConfigError("academic_qa searches in Milvus: pip install 'plait[synth]'") from None
    remote = address.startswith(("http://", "https://"))
    try:
        client = MilvusClient(address, timeout=30)
    except (MilvusException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        if remote:
            raise EndpointError(f"milvus {address} does not answer: {reason}") from None
        raise ConfigError(
            f"milvus: {address} cannot be opened: {reason}; if another process has it open, wait "
            "for that one or give another path or a server's address"
        ) from None
    try:
        yield Snippets(client, collection, embed)
    finally:
        client.close()
