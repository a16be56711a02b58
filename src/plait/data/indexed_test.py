import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.errors import DataError
from plait.data.indexed import ShardWriter, TokenShard


def write(prefix, documents, vocab_size=300):
    with ShardWriter(prefix, vocab_size) as shard:
        for document in documents:
            shard.add(document)


def test_bytes_on_disk_are_megatrons(tmp_path):
    write(tmp_path / "a", [[5, 299, 7], [1]])
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<4H", 5, 299, 7, 1)
    assert (tmp_path / "a.idx").read_bytes() == b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<Q", 1),
            struct.pack("<B", 8),
            struct.pack("<Q", 2),
            struct.pack("<Q", 3),
            struct.pack("<2i", 3, 1),
            struct.pack("<2q", 0, 6),
            struct.pack("<3q", 0, 1, 2),
        ]
    )


def read_as_megatron_does(prefix):
    """Follow the layout alone, field by field, with nothing of ours."""
    index, tokens = (prefix.with_suffix(end).read_bytes() for end in (".idx", ".bin"))
    place = 0

    def take(form):
        nonlocal place
        values = struct.unpack_from(f"<{form}", index, place)
        place += struct.calcsize(f"<{form}")
        return values

    magic, version, code = take("9sQB")
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    [num_sequences], [num_bounds] = take("Q"), take("Q")
    lengths, offsets = take(f"{num_sequences}i"), take(f"{num_sequences}q")
    bounds = take(f"{num_bounds}q")
    assert place == len(index)
    assert sum(lengths) * size == len(tokens)
    sequences = [
        list(struct.unpack_from(f"<{length}{letter}", tokens, offset))
        for length, offset in zip(lengths, offsets, strict=True)
    ]
    return [
        [token for sequence in sequences[start:end] for token in sequence]
        for start, end in itertools.pairwise(bounds)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 65_498), max_size=9), max_size=9),
    st.sampled_from([65_499, 131_072]),
)
def test_megatrons_layout_gives_the_documents_back(tmp_path_factory, documents, vocab_size):
    prefix = tmp_path_factory.mktemp("shard") / "a"
    write(prefix, documents, vocab_size)
    assert read_as_megatron_does(prefix) == documents


@pytest.mark.parametrize(
    ("vocab_size", "code", "dtype"), [(65_499, 8, "<u2"), (65_500, 4, "<i4"), (131_072, 4, "<i4")]
)
def test_token_type_follows_the_vocabulary(tmp_path, vocab_size, code, dtype):
    write(tmp_path / "a", [[vocab_size - 1]], vocab_size)
    assert (tmp_path / "a.idx").read_bytes()[17] == code
    assert np.fromfile(tmp_path / "a.bin", dtype).tolist() == [vocab_size - 1]
    assert TokenShard(tmp_path / "a")[0].tolist() == [vocab_size - 1]


@pytest.mark.parametrize(("token_size", "vocab_size"), [(2, 300), (4, 70_000)])
def test_datatroves_writer_makes_the_same_files(tmp_path, token_size, vocab_size):
    megatron = pytest.importorskip("datatrove.pipeline.tokens.megatron_tokenizer")
    documents = [[5, 299, 7], [1], [2, 3]]
    theirs = megatron.MegatronTokenizedFile(str(tmp_path), "theirs", token_size=token_size)
    for document in documents:
        theirs.write(document)
    theirs.close()
    write(tmp_path / "ours", documents, vocab_size)
    for end in ("bin", "idx"):
        ours = (tmp_path / f"ours.{end}").read_bytes()
        assert ours == (tmp_path / f"theirs.{end}").read_bytes()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=9))
def test_what_is_written_is_read(tmp_path_factory, documents):
    prefix = tmp_path_factory.mktemp("shard") / "a.b"
    write(prefix, documents)
    shard = TokenShard(prefix)
    assert [
        document.tolist() for document in map(shard.__getitem__, range(len(shard)))
    ] == documents
    assert shard.tokens.tolist() == [token for document in documents for token in document]


def test_reading_copies_nothing(tmp_path):
    write(tmp_path / "a", [[1, 2], [3]])
    shard = TokenShard(tmp_path / "a")
    assert np.shares_memory(shard[1], shard.tokens)
    assert not shard[1].flags.owndata
    assert not shard.tokens.flags.writeable


def test_documents_of_several_sequences(tmp_path):
    # Sequences of 2, 1 and 3 tokens; the first two are one document, as Megatron's tools may write.
    (tmp_path / "a.bin").write_bytes(struct.pack("<6q", *range(6)))
    (tmp_path / "a.idx").write_bytes(
        struct.pack("<9sQBQQ3i3q3q", b"MMIDIDX\0\0", 1, 5, 3, 3, 2, 1, 3, 0, 16, 24, 0, 2, 3)
    )
    shard = TokenShard(tmp_path / "a")
    assert [shard[0].tolist(), shard[1].tolist()] == [[0, 1, 2], [3, 4, 5]]


def test_an_interrupted_writer_leaves_no_shard(tmp_path):
    write(tmp_path / "a", [[1]])
    with pytest.raises(ValueError, match="outside the vocabulary of 300"):
        write(tmp_path / "a", [[2], [300]])
    assert not (tmp_path / "a.idx").exists()
    with pytest.raises(DataError, match=r"a\.idx: missing or empty"):
        TokenShard(tmp_path / "a")


def damage(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


@pytest.mark.parametrize(
    ("end", "change", "message"),
    [
        ("idx", lambda b: b[:20], "too short for an index"),
        ("idx", lambda b: b[:-1], "truncated or damaged"),
        ("idx", lambda b: b"", "missing or empty"),
        ("idx", lambda b: damage(b, 0, b"X"), "not a Megatron index"),
        ("idx", lambda b: damage(b, 9, b"\2"), "version 2"),
        ("idx", lambda b: damage(b, 17, b"\6"), "token type 6"),
        ("idx", lambda b: damage(b, 18, b"\7"), "truncated or damaged"),
        ("idx", lambda b: damage(b, 34, b"\xff\xff\xff\xff"), "make no sense"),
        ("idx", lambda b: damage(b, 42, b"\2"), "do not follow one another"),
        ("idx", lambda b: damage(b, 66, b"\3"), "make no sense"),
        ("bin", lambda b: b[:-1], "7 bytes, but its index says 4 tokens of 2 bytes"),
        ("bin", lambda b: b + b"xx", "10 bytes"),
    ],
)
def test_damage_is_named(tmp_path, end, change, message):
    write(tmp_path / "a", [[5, 299, 7], [1]])
    file = tmp_path / f"a.{end}"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=rf"a\.{end}: .*{message}"):
        TokenShard(tmp_path / "a")


def test_missing_token_file_is_named(tmp_path):
    write(tmp_path / "a", [[5]])
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin: missing"):
        TokenShard(tmp_path / "a")
