import pytest

from plait.core.errors import ConfigError
from plait.core.sizes import GIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("19.66GiB", int(19.66 * GIB)),
        ("512 MiB", 512 * 2**20),
        ("22GB", 22 * 10**9),
        ("1.5kib", 1536),
        ("4096", 4096),
        (" 7 B ", 7),
    ],
)
def test_sizes_as_people_write_them(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "1.5kg", "-1GiB", "1,5GiB", "1 GiB 2"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="no size"):
        parse_bytes(text)


def test_a_size_is_printed_in_its_own_unit():
    assert format_bytes(0) == "0 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_bytes(int(18.686 * GIB)) == "18.69 GiB"
