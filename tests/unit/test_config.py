"""Settings: what is read, what is refused, and that each message names the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Settings, load_settings
from gateway.errors import ConfigurationError

SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith("OUTLAST_"):
            monkeypatch.delenv(name)


def test_nothing_has_to_be_set() -> None:
    """The defaults listen on this machine only, and need no Redis."""
    settings = load_settings()

    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8080, "")
    assert settings.blob_location == (Path.cwd() / ".outlast" / "blobs").as_uri()


def test_every_setting_is_described() -> None:
    """The docs list them by their descriptions."""
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_is_read_and_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line stands over the environment."""
    monkeypatch.setenv("OUTLAST_PORT", "9000")
    monkeypatch.setenv("OUTLAST_HEARTBEAT_SECONDS", "5")

    settings = load_settings(port=9001, heartbeat_seconds=None)

    assert (settings.port, settings.heartbeat_seconds) == (9001, 5)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass on what isn't set as an empty text."""
    for name in ("PORT", "API_KEYS", "REDIS_URL", "ALLOWED_ORIGINS", "HOST"):
        monkeypatch.setenv(f"OUTLAST_{name}", "")

    assert load_settings() == Settings()


def test_the_clients_variables_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """OUTLAST_URL and OUTLAST_API_KEY belong to `outlast submit`."""
    monkeypatch.setenv("OUTLAST_URL", "http://gateway:8080")
    monkeypatch.setenv("OUTLAST_API_KEY", SECRET)

    assert load_settings().api_keys == {}


def test_keys_and_origins_are_lists_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret may hold colons; spaces and trailing slashes are forgiven."""
    monkeypatch.setenv("OUTLAST_API_KEYS", f"me:{SECRET}, ci:a:{SECRET},")
    monkeypatch.setenv("OUTLAST_ALLOWED_ORIGINS", "https://a.example/, http://localhost:3000")

    settings = load_settings()

    assert {name: secret.get_secret_value() for name, secret in settings.api_keys.items()} == {
        "me": SECRET,
        "ci": f"a:{SECRET}",
    }
    assert settings.allowed_origins == ("https://a.example", "http://localhost:3000")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "LOCALHOST.evil.example"])
def test_a_public_address_needs_a_key(host: str) -> None:
    """An open port without a key would run anybody's jobs; the message says what to set."""
    with pytest.raises(ConfigurationError, match=r"OUTLAST_API_KEYS=me:\$\(openssl"):
        load_settings(host=host)

    assert load_settings(host=host, api_keys=f"me:{SECRET}").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Trying it out takes no setting."""
    assert load_settings(host=host).host == host


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", 65536, "OUTLAST_PORT: .*65535"),
        ("port", "x", "OUTLAST_PORT: "),
        ("heartbeat_seconds", 0, "OUTLAST_HEARTBEAT_SECONDS: .*greater than 0"),
        ("heartbeat_seconds", float("nan"), "OUTLAST_HEARTBEAT_SECONDS: .*finite"),
        ("job_deadline_seconds", float("inf"), "OUTLAST_JOB_DEADLINE_SECONDS: .*finite"),
        ("prefix", "a:b", "OUTLAST_PREFIX: "),
        ("prefix", "{x}", "OUTLAST_PREFIX: "),
        ("durability", "maybe", "OUTLAST_DURABILITY: .*'replica'"),
        ("redis_url", "localhost:6379", "OUTLAST_REDIS_URL: .*redis"),
        ("redis_url", "http://x", "OUTLAST_REDIS_URL: "),
        ("api_keys", "secret-without-a-name", "OUTLAST_API_KEYS: give every key as name:secret"),
        ("api_keys", "me:short", "'me' is shorter than 16"),
        ("api_keys", f"a/b:{SECRET}", "'a/b' is not"),
        ("api_keys", f":{SECRET}", "'' is not"),
        ("api_keys", f"me:{SECRET},me:x{SECRET}", "a name stands for one key"),
        ("api_keys", f"me:{SECRET},you:{SECRET}", "two names have the same"),
        ("api_keys", f"me:{SECRET}\u00fc", "visible ASCII"),
        ("probe_token", "short", "OUTLAST_PROBE_TOKEN: shorter than 16"),
        ("probe_token", f"{SECRET}\u00fc", "OUTLAST_PROBE_TOKEN: .*visible ASCII"),
        ("allowed_origins", "null", "origin null"),
        ("allowed_origins", "*", r"'\*' is no origin"),
        ("allowed_origins", "https://a.example,app.example.com", "'app.example.com' is no origin"),
        ("allowed_origins", "https://A.example", "in lower case"),
        ("allowed_origins", "https://a.example/app", "without a path"),
        ("nonsense", "1", "OUTLAST_NONSENSE: "),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object, words: str) -> None:
    """The message names the variable and what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        load_settings(**{name: value})


def test_all_wrong_settings_are_named_at_once() -> None:
    """Nobody wants to find them one start at a time."""
    with pytest.raises(ConfigurationError, match=r"OUTLAST_PORT: .*; OUTLAST_PREFIX: "):
        load_settings(port=-1, prefix="")


def test_secrets_are_neither_shown_nor_told() -> None:
    """A settings object may stand in a log, an error in a terminal."""
    settings = load_settings(api_keys=f"me:{SECRET}", redis_url="redis://:hunter2-hunter2@db:6379")

    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigurationError) as refused:
        load_settings(api_keys=f"me:{SECRET}\u00fc", redis_url="hunter2")
    assert SECRET not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://:x@host:6380/1",
        "unix:///run/valkey.sock",
        "redis+cluster://a:7000,b:7001",
        "rediss+cluster://a:7000",
        "redis+sentinel://a:26379,b/main/0",
        "rediss+sentinel://a/main",
    ],
)
def test_redis_urls_are_accepted(url: str) -> None:
    """One server over TCP, TLS or a socket."""
    assert load_settings(redis_url=url).redis_url == url


def test_settings_cannot_be_changed() -> None:
    """They are checked once, when they are made."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_blobs_can_live_elsewhere() -> None:
    """A shared store, where gateways and workers are on several machines."""
    assert load_settings(blob_url="s3://bucket/jobs").blob_location == "s3://bucket/jobs"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("llm_url", "localhost:8000/v1", "only URLs that begin with http:// or https://"),
        ("llm_url", "https://*.example.com/v1", "one server's address"),
        ("llm_url", "https://example.com/v1?key=1", "has a query"),
        ("llm_key", "line\nbreak", "visible ASCII"),
    ],
)
def test_a_model_server_is_one_address_and_a_key_for_a_header(name: str, value: str, reason: str) -> None:
    """What can't work is told at the start."""
    with pytest.raises(ConfigurationError, match=reason):
        load_settings(**{name: value})


def test_the_model_servers_key_is_not_shown() -> None:
    """Neither where settings are printed nor where they are dumped."""
    settings = load_settings(llm_url="http://127.0.0.1:1/v1", llm_key="sk-hidden", llm_models="a, b")

    assert "sk-hidden" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.llm_models == ("a", "b")


def test_a_misspelt_setting_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored, it would look as if it held. An application's own names, and those of the commands, are no mistake."""
    monkeypatch.setenv("OUTLAST_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("OUTLAST_API_KEY", "the-client-s-key")
    monkeypatch.setenv("OUTLAST_PORT_8080_TCP", "tcp://10.0.0.1:8080")
    load_settings()

    monkeypatch.setenv("OUTLAST_HARTBEAT_SECONDS", "3")
    with pytest.raises(ConfigurationError, match=r"HARTBEAT_SECONDS is no setting; did you mean OUTLAST_HEARTBEAT_"):
        load_settings()


@pytest.mark.parametrize("url", ["localhost:6379", "http://secret@host", "redis:", "redis+other://host"])
def test_a_wrong_redis_url_is_told_by_example_and_not_repeated(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigurationError, match="OUTLAST_REDIS_URL: a Redis URL looks like redis://") as caught:
        load_settings(redis_url=url)

    assert "secret" not in str(caught.value)
