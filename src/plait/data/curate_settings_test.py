import pytest

from plait.core.errors import ConfigError
from plait.data.curate_settings import CurateSettings

INSTALLED = {"installed": [{}]}


def parse(**category):
    return CurateSettings.parse({"categories": {"news": category}}, "01_curate.toml")


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({}, "a category needs a source: debian, debian_code, installed, warc or files"),
        ({"debian": [{"packages": []}]}, r"categories\.news\.debian\.0\.packages"),
        ({"debian": [{"packages": ["Two Words"]}]}, "not a Debian package name: 'Two Words'"),
        ({"warc": [{"path": "x"}]}, r"unknown key .*path.*; did you mean 'paths'\?"),
        ({**INSTALLED, "languages": ["en", "xx"]}, "unknown language 'xx'; allowed: ar, da"),
        ({**INSTALLED, "extractor": "magic"}, "extractor.*'justext' or 'resiliparse'"),
        ({**INSTALLED, "prose": {"min_word": 3}}, r"did you mean 'min_words'\?"),
        ({**INSTALLED, "prose_by_language": {"ko": {"min_word": 3}}}, r"_language\.ko: unknown"),
        ({**INSTALLED, "prose_by_language": {"kr": {}}}, "unknown language 'kr'"),
    ],
)
def test_mistakes_are_named(category, message):
    with pytest.raises(ConfigError, match=r"01_curate\.toml: .*" + message):
        parse(**category)


@pytest.mark.parametrize("name", ["", "Two words", "../up", "a/b"])
def test_a_category_names_a_file(name):
    with pytest.raises(ConfigError, match="lower-case letters"):
        CurateSettings.parse({"categories": {name: INSTALLED}}, "recipe")


def test_there_is_a_category():
    with pytest.raises(ConfigError, match="categories"):
        CurateSettings.parse({"categories": {}}, "recipe")


def test_rules_of_a_language_differ_only_where_said():
    category = parse(
        **INSTALLED, prose={"max_words": 900}, prose_by_language={"ko": {"min_words": 20}}
    ).categories["news"]
    korean, german = category.prose_for("ko"), category.prose_for("de")
    assert (korean.min_words, korean.max_words) == (20, 900)
    assert (german.min_words, german.max_words) == (50, 900)
    assert korean.max_repeated_ngrams == german.max_repeated_ngrams
