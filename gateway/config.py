"""Settings: one frozen class, read from the environment (`OUTLAST_...`) and the command line, checked once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.errors import ConfigurationError
from gateway.upstreams import Upstreams

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LEAST_SECRET: Final = 16
# Read by the command line's clients and by tests of whole processes; no settings of ours.
_NO_SETTINGS: Final = frozenset({"OUTLAST_URL", "OUTLAST_API_KEY", "OUTLAST_HALT"})
# So alike are a setting and what somebody meant for it; a name of an application's own is not.
_ALIKE: Final = 0.85
_REDIS_URL: Final = re.compile(r"(unix|rediss?(\+(cluster|sentinel))?)://.+")
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_KEY_SECRET: Final = re.compile(r"[!-~]*", re.ASCII)
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


class Settings(BaseSettings):
    """All that can be set. Every value has its unit in its name; `docs/settings.md` lists them."""

    model_config = SettingsConfigDict(
        env_prefix="OUTLAST_",
        frozen=True,
        extra="forbid",
        # Compose files and shells pass on what isn't set as an empty text.
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    host: str = Field("127.0.0.1", description="Address to listen on. A public one needs `api_keys`.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, description="`name:secret` pairs, separated by commas; the name is the owner of the jobs."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins of pages that may use the API from a browser, separated by commas."
    )

    probe_token: SecretStr = Field(
        SecretStr(""), description="Opens `/_probe/...` to `outlast doctor`; empty: these routes are 404."
    )

    operators: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of API keys that may pause and resume kinds, separated by commas."
    )

    redis_url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="URL of a running Redis: redis://, unix://, redis+cluster:// ...; empty: an embedded Valkey.",
    )
    prefix: str = Field("ol", pattern=r"^[a-z][a-z0-9_-]{0,15}$", description="First part of every key in Redis.")
    data: Path = Field(Path(".outlast"), description="Folder of the embedded Valkey and of the blobs.")
    embedded_memory_bytes: int = Field(
        0, ge=0, description="Most memory of the embedded Valkey; 0: half of the machine's. When full, submits get 503."
    )
    blob_url: str = Field("", description="Where files live: file:///path or s3://bucket/path; empty: in `data`.")
    durability: Literal["redis", "disk", "replica"] = Field(
        "redis",
        description="What a submit and an end wait for: Redis's answer, its disk (appendfsync always), or a replica.",
    )

    heartbeat_seconds: float = Field(15, gt=0, le=120, description="Longest silence on a stream.")
    run_quiet_seconds: float = Field(
        20, gt=0, le=120, description="How long a held POST is silent before its first white space fixes the status."
    )
    stream_max_age_seconds: float = Field(600, ge=1, description="A GET stream is ended by plan after this, +-20 %.")
    retry_seconds: float = Field(2, ge=0.1, le=60, description="Reconnect advice to SSE clients; jittered.")
    max_upload_bytes: int = Field(
        100 * 1024 * 1024, ge=1, description="Largest request body, and largest file that comes in parts."
    )
    max_inline_bytes: int = Field(256 * 1024, ge=1024, description="Larger inputs, outputs and results become blobs.")
    header_timeout_seconds: float = Field(10, gt=0, description="For a request's head to arrive.")
    upload_idle_seconds: float = Field(30, gt=0, description="Longest pause in an upload.")
    write_stall_seconds: float = Field(20, gt=0, description="A listener that reads nothing for this long is closed.")
    write_buffer_bytes: int = Field(256 * 1024, ge=16 * 1024, description="Most bytes that wait for one listener.")
    max_connections: int = Field(10_000, ge=1, description="Connections of one gateway; further ones get 503.")
    max_streams_per_owner: int = Field(10_000, ge=1, description="Streams of one owner on one gateway.")
    drain_seconds: float = Field(5, ge=0, description="On SIGTERM, streams are closed spread over this time.")

    lease_seconds: float = Field(30, gt=0.2, le=3600, description="A worker that is silent this long loses its jobs.")
    job_deadline_seconds: float = Field(7 * 86_400, gt=0, description="No job stays open longer than this.")
    tombstone_seconds: float = Field(7 * 86_400, ge=0, description="How long an expired job answers 410.")

    upstreams: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="URLs that jobs may call, and all below them, separated by commas; none by default."
    )
    upstream_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Networks of upstreams that are not public, separated by commas, such as 10.1.0.0/16."
    )
    llm_url: str = Field(
        "", description="Base URL of an OpenAI-compatible model server, such as http://127.0.0.1:8000/v1; starts `llm`."
    )
    llm_key: SecretStr = Field(SecretStr(""), description="API key for that server.")
    llm_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models that may be asked, separated by commas; empty: all that the server has."
    )
    routes: Path | None = Field(None, description="File with slow routes: public paths and the upstreams behind them.")
    upstream_connect_seconds: float = Field(10, gt=0, le=300, description="For a connection to an upstream.")
    upstream_idle_seconds: float = Field(
        1800, gt=0, le=86_400, description="An upstream that says nothing for so long, once it answers, is given up."
    )
    max_upstream_bytes: int = Field(
        100 * 1024 * 1024, ge=1024, description="Largest answer of an upstream, and largest file behind `input_url`."
    )

    concurrency: int = Field(
        0, ge=0, description="Attempts at once in one worker; 0: one a core, or 256 of kinds that only wait."
    )
    stop_grace_seconds: float = Field(10, ge=0, description="A stopping worker waits this long for its attempts.")

    dev: bool = Field(False, description="Allows ?cut= on streams, to see the resume work.")
    log_format: Literal["text", "json"] = Field("text", description="One line per log record, or JSON lines.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip() for pair in value.split(",") if pair.strip()]
        if any(":" not in pair for pair in pairs):
            raise ValueError("give every key as name:secret")
        keys = dict(pair.split(":", 1) for pair in pairs)
        if len(keys) < len(pairs):
            raise ValueError("a name stands for one key; give every key its own")
        return keys

    @field_validator("allowed_origins", "operators", "upstreams", "upstream_networks", "llm_models", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("upstreams")
    @classmethod
    def _check_upstreams(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Upstreams(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        # The value is not repeated: it may hold a password.
        if value and not _REDIS_URL.match(value):
            raise ValueError(
                "a Redis URL looks like redis://HOST:6379/0, rediss:// with TLS, unix:///PATH/TO/SOCKET,"
                " redis+cluster://HOST:6379 or redis+sentinel://HOST:26379"
            )
        return value

    @field_validator("llm_url")
    @classmethod
    def _check_llm_url(cls, value: str) -> str:
        Upstreams([value] if value else [])
        if "://*" in value:
            raise ValueError("it is one server's address, without a `*`")
        return value

    @field_validator("llm_key", "probe_token")
    @classmethod
    def _check_sendable(cls, value: SecretStr) -> SecretStr:
        if not _KEY_SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("it travels in a header; make it of visible ASCII characters")
        return value

    @field_validator("upstream_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Upstreams((), value)
        except ValueError as error:
            raise ValueError(f"{error}; a network looks like 10.1.0.0/16") from None
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _trim_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(origin.rstrip("/") for origin in value)

    @field_validator("probe_token")
    @classmethod
    def _check_probe_token(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < LEAST_SECRET:
            raise ValueError(f"shorter than {LEAST_SECRET} characters; make one with `openssl rand -hex 24`")
        return value

    @model_validator(mode="after")
    def _check(self) -> Settings:
        secrets = [secret.get_secret_value() for secret in self.api_keys.values()]
        if wrong := [name for name in self.api_keys if not _KEY_NAME.fullmatch(name)]:
            raise ValueError(f"the API key's name {wrong[0]!r} is not 1 to 64 of A-Z, a-z, 0-9, '.', '_', '@' and '-'")
        if not all(_KEY_SECRET.fullmatch(secret) for secret in secrets):
            raise ValueError("an API key travels in a header; make it of visible ASCII characters")
        if len(set(secrets)) < len(secrets):
            raise ValueError("two names have the same API key, so it would not say whose job it is")
        weak = [name for name, secret in self.api_keys.items() if len(secret.get_secret_value()) < LEAST_SECRET]
        if weak:
            raise ValueError(
                f"the API key {weak[0]!r} is shorter than {LEAST_SECRET} characters;"
                " make one with `openssl rand -hex 24`"
            )
        if unknown := [name for name in self.operators if name not in self.api_keys]:
            raise ValueError(f"the operator {unknown[0]!r} has no API key; name one of OUTLAST_API_KEYS")
        if "null" in self.allowed_origins:
            raise ValueError("the origin null stands for any sandboxed page; name real origins")
        if wrong := [origin for origin in self.allowed_origins if not _ORIGIN.fullmatch(origin)]:
            # It would match nothing that a browser sends, and say so to nobody.
            raise ValueError(
                f"{wrong[0]!r} is no origin; one looks like https://app.example.com, in lower case and without a path,"
                " and none stands for all"
            )
        if self.host not in LOOPBACK and not self.api_keys:
            raise ValueError(
                f"{self.host} can be reached from outside, and no API key is set;"
                " set OUTLAST_API_KEYS=me:$(openssl rand -hex 24), or listen on 127.0.0.1"
            )
        return self

    @property
    def reachable_host(self) -> str:
        """The host by which this machine reaches the gateway that listens on `host`."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    def address(self, port: int) -> str:
        """Where this machine reaches the gateway that listens on this port, which `port` 0 doesn't say."""
        host = self.reachable_host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def blob_location(self) -> str:
        """The blob store's URL, with the default filled in."""
        return self.blob_url or (self.data.resolve() / "blobs").as_uri()


def load_settings(**overrides: object) -> Settings:
    """Read the environment, then the overrides. Raises `ConfigurationError` naming each wrong setting."""
    if wrong := _misspelt(os.environ):
        raise ConfigurationError("; ".join(wrong))
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            # Only the setting itself: below it stands what the user wrote.
            name = str(problem["loc"][0]) if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"OUTLAST_{name.upper()}: {message}" if name else message)
        raise ConfigurationError("; ".join(lines)) from None


def _misspelt(names: Iterable[str]) -> list[str]:
    """What is said of names that are almost a setting's: ignored, they would look as if they held."""
    known = [name.upper() for name in Settings.model_fields]
    said = []
    for name in sorted(names):
        word = name.removeprefix("OUTLAST_")
        if word == name or word in known or name in _NO_SETTINGS:
            continue
        if near := difflib.get_close_matches(word, known, 1, _ALIKE):
            said.append(f"{name} is no setting; did you mean OUTLAST_{near[0]}?")
    return said
