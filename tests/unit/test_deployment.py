"""What a Redis URL names, and where a cluster's keys lie."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigurationError
from gateway.store.deployment import Address, Deployment, Slots


@pytest.mark.parametrize(
    ("url", "topology", "seeds", "options"),
    [
        ("redis://", "server", [("localhost", 6379)], {}),
        ("redis://db/2", "server", [("db", 6379)], {"db": 2}),
        ("redis://ann:p%40ss@[::1]:7000", "server", [("::1", 7000)], {"username": "ann", "password": "p@ss"}),
        ("unix:///run/a%20b.sock?db=1", "server", [("/run/a b.sock", 0)], {"db": 1}),
        ("redis+cluster://a,b:7001", "cluster", [("a", 6379), ("b", 7001)], {}),
        ("redis+cluster://:p%2Cw@a,[::1]:7001/0", "cluster", [("a", 6379), ("::1", 7001)], {"password": "p,w"}),
        ("redis+sentinel://a,b:1/main", "sentinel", [("a", 26379), ("b", 1)], {"db": 0}),
        ("redis+sentinel://:pw@a/main/3", "sentinel", [("a", 26379)], {"db": 3, "password": "pw"}),
    ],
)
def test_a_url_says_whom_to_ask_and_how(
    url: str, topology: str, seeds: list[tuple[str, int]], options: dict[str, object]
) -> None:
    """Credentials, ports and databases are read as redis-py reads those of one server."""
    deployment = Deployment.parse(url)

    assert (deployment.topology, list(deployment.seeds)) == (topology, seeds)
    assert deployment.options == options
    assert not deployment.tls


@pytest.mark.parametrize("url", ["rediss://a", "rediss+cluster://a,b?ssl_ca_certs=/ca.pem", "rediss+sentinel://a/main"])
def test_two_s_mean_tls_everywhere(url: str) -> None:
    """Also to Sentinels."""
    deployment = Deployment.parse(url)

    assert deployment.tls
    assert deployment.sentinel_options.keys() <= {"ssl_ca_certs"}


def test_sentinels_have_credentials_of_their_own() -> None:
    """The password of the servers is never sent to them."""
    deployment = Deployment.parse("redis+sentinel://:of-servers@a/main?sentinel_password=of-sentinels")

    assert deployment.master == "main"
    assert deployment.options == {"db": 0, "password": "of-servers"}
    assert deployment.sentinel_options == {"password": "of-sentinels"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://a,b", "several are a cluster or Sentinels"),
        ("redis://a:x", "OUTLAST_REDIS_URL"),
        ("redis://a:99999", "OUTLAST_REDIS_URL"),
        ("unix://", "no socket"),
        ("unix+cluster:///x", "none of the schemes"),
        ("redis+ring://a", "none of the schemes"),
        ("redis+cluster://a,", "a host is missing"),
        ("redis+cluster://a/1", "no database but 0"),
        ("redis+sentinel://a", "names no master"),
        ("redis+sentinel://a/main/x", "names no master"),
    ],
)
def test_a_url_that_cant_be_meant_is_refused_with_what_can(url: str, said: str) -> None:
    """The message names the setting, what is wrong, and all forms that there are."""
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://host:6379,host:6379") as refused:
        Deployment.parse(url)

    assert said in str(refused.value)


def test_a_password_is_not_shown() -> None:
    """A deployment may end up in a log."""
    assert "secret" not in repr(Deployment.parse("redis+sentinel://:secret@a/m?sentinel_password=secret2"))


def test_slots_are_where_their_master_is() -> None:
    """A node that doesn't know its own host is where it was asked; slots may belong to nobody."""
    reply = [
        [0, 8000, [b"", 7000, b"one"], [b"10.0.0.9", 7003, b"four"]],
        [8001, 16_000, [b"10.0.0.2", 7001, b"two"]],
    ]
    slots = Slots.parse(reply, Address("asked", 1))

    # The published test value of the CRC: 123456789 is in slot 12739.
    assert slots.owner("{123456789}:x") == slots.owner(b"a:{123456789}") == Address("10.0.0.2", 7001)
    assert slots.masters == (Address("10.0.0.2", 7001), Address("asked", 7000))
    assert Slots.parse(reply[:1], Address("asked", 1)).owner("{123456789}") is None
    assert slots.nodes == {"one", "two", "four"}
    assert slots.same(Slots.parse(reply, Address("asked", 1)))
    assert not slots.same(Slots.parse(reply, Address("other", 1)))
