import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.engine.text import TextSection, decode, find_first, num_held_bytes

TEXTS = st.text(st.sampled_from("a é€😀\n \t\u00a0\u2028<\x00\ufffd"))


def pieces(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(point, len(data)) for point in points), len(data)]
    return [data[i:j] for i, j in itertools.pairwise(edges)]


@given(TEXTS, st.lists(st.integers(0, 60)), st.booleans())
def test_pieces_join_to_the_whole_text_and_split_no_character(text, points, strip):
    section = TextSection(strip=strip)
    got = [section.feed(piece) for piece in pieces(text.encode(), points)]
    assert "".join(got) == (text.strip() if strip else text)
    assert "\ufffd" not in "".join(got) or "\ufffd" in text


@given(st.binary(max_size=20), st.lists(st.integers(0, 20)), st.booleans())
def test_any_bytes_give_the_same_text_however_they_are_cut(data, points, strip):
    section = TextSection(strip=strip)
    got = "".join(section.feed(piece) for piece in pieces(data, points))
    assert got == decode(data, strip=strip)


def test_unfinished_character_is_dropped_and_a_broken_one_replaced():
    assert decode("a€".encode()[:-1]) == "a"
    assert decode("€".encode()[:-1] + b"a") == "\ufffda"


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 4),
)
def test_find_first_over_growing_data_equals_search_in_each_prefix(text, stops, start):
    encoded = [stop.encode() for stop in stops]
    data, searched = bytearray(), 0
    for byte in text.encode():
        data.append(byte)
        found = find_first(data, encoded, searched, start)
        searched = len(data)
        expected = [data.find(stop, start) for stop in encoded]
        assert found == min((i for i in expected if i >= 0), default=None)
        if found is not None:
            break


@pytest.mark.parametrize(
    ("data", "held"), [(b"xEN", 2), (b"xEND", 0), (b"xE", 1), (b"x", 0), (b"", 0), (b"x\n", 1)]
)
def test_held_bytes(data, held):
    assert num_held_bytes(bytearray(data), [b"END", b"\n\n"]) == held


def test_nothing_is_held_without_stop_strings():
    assert num_held_bytes(bytearray(b"abc"), []) == 0
