"""Hops as data: the profiles that come with Outlast, and what is said about a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.edge import load_profile, profile_names
from gateway.edge.profile import EVIDENCE
from gateway.errors import ConfigurationError

PROFILES = Path(__file__).parents[2] / "gateway" / "edge" / "profiles"


@pytest.mark.parametrize("name", profile_names())
def test_every_value_has_its_evidence(name: str) -> None:
    """Also those that are taken from another profile."""
    profile = load_profile(name)

    assert profile.name == name
    assert profile.title
    assert len(profile.evidence) == 52
    assert set(profile.evidence.values()) <= EVIDENCE.keys()


LIMITS = {
    "alb": (60, 60, 0, 504),
    "api-gateway": (29, 29, 29, 504),
    "cloudflare": (125, 125, 0, 524),
    "cloudflare-2024": (100, 100, 0, 524),
    "cloudflare-tunnel-old": (125, 125, 0, 524),
    "enterprise": (6000, 6000, 0, 524),
    "heroku": (30, 55, 0, 503),
    "nginx-default": (60, 60, 0, 504),
    "quick-tunnel": (125, 125, 0, 524),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_hop_is_as_patient_as_the_real_one(name: str) -> None:
    """The first byte, the gap, the whole, and the status of a silence, as their documentation says."""
    profile = load_profile(name)
    timers = profile.timers

    assert (timers.first_seconds, timers.gap_seconds, timers.total_seconds, profile.errors.silent) == LIMITS[name]


def test_a_profile_takes_what_it_does_not_say_from_another() -> None:
    """And the evidence with it."""
    new, old = load_profile("cloudflare"), load_profile("cloudflare-2024")

    assert (new.timers.first_seconds, old.timers.first_seconds) == (125, 100)
    assert old.timers.write_seconds == new.timers.write_seconds == 30
    assert old.evidence["timers.write_seconds"] == "D"
    assert "100 until Oct 2025" in new.notes["timers.first_seconds"]


def test_a_profile_can_be_changed_in_code() -> None:
    """The original stays as it is."""
    profile = load_profile("cloudflare")
    changed = profile.changed(timers__gap_seconds=5, brand="none")

    assert (changed.timers.gap_seconds, changed.brand) == (5, "none")
    assert profile.timers.gap_seconds == 125


def test_a_profile_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    """It may extend one beside it, which extends one of ours."""
    (tmp_path / "base.toml").write_text('extends = "alb"\n[timers]\ngap_seconds = { value = 7, evidence = "T" }\n')
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "base.toml"\ntitle = "Mine"\n')

    profile = load_profile(str(mine))

    assert (profile.title, profile.brand, profile.timers.gap_seconds) == ("Mine", "alb", 7)
    assert profile.evidence["timers.gap_seconds"] == "T"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("timers = ", "not TOML"),
        ('[times]\na = { value = 1, evidence = "D" }', "`times` is not one of extends, title, brand, timers"),
        ("[timers]\ngap_seconds = 5", 'write `timers.gap_seconds` as { value = ..., evidence = "D" }'),
        ('[timers]\ngap_seconds = { value = 5, evidence = "D", why = "" }', "write `timers.gap_seconds`"),
        ('[timers]\ngap_seconds = { value = 5, evidence = "X" }', "the evidence of `timers.gap_seconds` is one of D"),
        ('[timers]\ngap = { value = 5, evidence = "D" }', "`timers.gap` is unknown; `timers` has"),
        ('[timers]\ngap_seconds = { value = -1, evidence = "D" }', "is a number of seconds, 0 for no limit, not -1"),
        ('[timers]\ncounts = { value = "all", evidence = "D" }', "is one of read, passed, not 'all'"),
        ('[request]\nreuse_race = { value = 1, evidence = "D" }', "is true or false, not 1"),
        ('[request]\nmax_loops = { value = 1.5, evidence = "D" }', "is a whole number, not 1.5"),
        ('[response]\nreplaced_statuses = { value = ["a"], evidence = "D" }', "is a list of numbers"),
        ('brand = "acme"', "`brand` is one of none, cloudflare"),
        ('extends = "self.toml"', "goes round in a circle"),
        ('extends = "nothing"', "can't be read"),
    ],
)
def test_a_wrong_file_is_told_where_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    """A typing error must not become a limit that is not there."""
    path = tmp_path / "self.toml"
    path.write_text(text if text.startswith("extends") else f'extends = "direct"\n{text}')

    with pytest.raises(ConfigurationError) as raised:
        load_profile(str(path))

    assert said in raised.value.detail


def test_a_file_without_a_base_is_told_what_it_lacks(tmp_path: Path) -> None:
    """All values come from somewhere."""
    path = tmp_path / "bare.toml"
    path.write_text('title = "Bare"')

    with pytest.raises(ConfigurationError, match='is missing; begin with `extends = "direct"`'):
        load_profile(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    """With the way to a file."""
    with pytest.raises(ConfigurationError, match=r"cloudflare, .*any path to a \.toml file"):
        load_profile("cloudfare")
