import pytest

from plait.core.endpoint import EndpointSettings
from plait.core.errors import ConfigError


def test_the_key_stays_in_the_environment(monkeypatch):
    table = {"url": "http://127.0.0.1:8000/v1/", "model": "m", "api_key_env": "PLAIT_TEST_KEY"}
    settings = EndpointSettings.parse(table, "recipe")
    assert settings.url == "http://127.0.0.1:8000/v1"
    monkeypatch.delenv("PLAIT_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="PLAIT_TEST_KEY is not set; export it"):
        settings.api_key()
    monkeypatch.setenv("PLAIT_TEST_KEY", "a secret")
    assert settings.api_key() == "a secret"
    assert "a secret" not in settings.model_dump_json()
    monkeypatch.setenv("PLAIT_TEST_KEY", "a secret\r\n")
    assert settings.api_key() == "a secret"
    monkeypatch.setenv("PLAIT_TEST_KEY", "a\nsecret")
    with pytest.raises(ConfigError, match="holds characters that no key has") as told:
        settings.api_key()
    assert "secret" not in str(told.value)


def test_an_address_is_one():
    with pytest.raises(ConfigError, match=r"begins with http:// or https://.*found 'localhost"):
        EndpointSettings.parse({"url": "localhost:8000", "model": "m"}, "recipe")
    for url in ("http://", "http://127.0.0.1:99999/v1", "http://[::1/v1"):
        with pytest.raises(ConfigError, match="url"):
            EndpointSettings.parse({"url": url, "model": "m"}, "recipe")
