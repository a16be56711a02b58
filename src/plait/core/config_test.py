import pytest
from pydantic import Field

from plait.core.config import Settings, read_toml
from plait.core.errors import ConfigError


class Phase(Settings):
    until: float
    weights: dict[str, float]


class Example(Settings):
    learning_rate: float = 1e-3
    phases: tuple[Phase, ...] = ()
    named: dict[str, Phase] = Field(default={})


def test_unknown_key_names_source_and_nearest_key():
    with pytest.raises(ConfigError, match=r"a\.toml: unknown key 'learning_rat'.*'learning_rate'"):
        Example.parse({"learning_rat": 1}, "a.toml")


def test_unknown_nested_key_is_compared_with_the_nested_table():
    table = {"phases": [{"until": 1.0, "weights": {}, "untill": 2}]}
    with pytest.raises(ConfigError, match=r"'phases\.0\.untill'; did you mean 'until'"):
        Example.parse(table, "a.toml")


def test_the_name_of_a_table_is_not_taken_for_a_key():
    table = {"named": {"weights": {"until": 1.0, "weights": {}, "untill": 2}}}
    with pytest.raises(ConfigError, match=r"'named\.weights\.untill'; did you mean 'until'"):
        Example.parse(table, "a.toml")


def test_missing_and_wrong_values_are_all_named():
    with pytest.raises(ConfigError, match=r"'phases\.0\.until' is required.*weights.*\(found 3\)"):
        Example.parse({"phases": [{"weights": 3}]}, "a.toml")


def test_settings_are_frozen():
    settings = Example()
    with pytest.raises(ValueError, match="frozen"):
        settings.learning_rate = 2.0


def test_toml_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = ")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        read_toml(broken)
    broken.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        read_toml(broken)
