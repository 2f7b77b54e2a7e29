"""What a terminal shows of a job: the words, the bars, the plain lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gateway.cli.display import Bars, Display, Lines, Silent, View, display, printable
from gateway.client import Subscription
from gateway.errors import Unreachable
from gateway.event_text import decode_event
from gateway.protocol import Event
from tests.scripted_gateway import JOB, event_text, transient_text

PROBLEM = {"code": "worker_lost", "detail": "The worker was silent for 30 s."}


def numbered(*entries: tuple[str, dict[str, Any]], attempts: dict[int, int] | None = None) -> list[Event]:
    """A log of these events; `attempts` says from which event on an attempt counts."""
    events = []
    attempt = 1
    for number, (type_, data) in enumerate(entries, 1):
        attempt = (attempts or {}).get(number, attempt)
        events.append(decode_event(event_text(number, type_, data, attempt=attempt)))
    return events


def view_of(*entries: tuple[str, dict[str, Any]], attempts: dict[int, int] | None = None) -> View:
    """A view that has taken these events, one a second from 0 on."""
    view = View(JOB)
    for second, event in enumerate(numbered(*entries, attempts=attempts)):
        view.take(event, float(second))
    return view


def transient(type_: str, data: dict[str, Any]) -> Event:
    """An event without a number."""
    return decode_event(transient_text(type_, data))


def subscription() -> Subscription:
    """One that nobody reads."""
    unused: Any = None
    return Subscription(JOB, unused)


QUEUED: tuple[str, dict[str, Any]] = ("queued", {})
STARTED: tuple[str, dict[str, Any]] = ("started", {"worker": "w-1"})


def progress(current: float, total: float | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    """A progress event."""
    return "progress", {"current": current, "total": total} | more


def test_a_queued_job_tells_its_place_in_the_line() -> None:
    """Until it has begun."""
    view = view_of(QUEUED)
    assert view.doing(1.0) == "queued"

    view.take(transient("position", {"position": 3, "eta_seconds": None}), 1.0)

    assert view.doing(1.0) == "queued, position 3"

    view.take(transient("position", {"position": 2, "eta_seconds": 70.0}), 1.0)

    assert view.doing(1.0) == "queued, position 2, begins in about 1:10"
    assert view.doing(11.0) == "queued, position 2, begins in about 1:00"
    assert view.doing(300.0) == "queued, position 2, begins in about 0:00"


@pytest.mark.parametrize(
    ("entry", "doing", "counted"),
    [
        (progress(0), "running", "0"),
        (progress(3, 12, unit="pages"), "running", "3/12 pages"),
        (progress(3.456, 12, unit="pages", message="page 4, line 2 of 9"), "page 4, line 2 of 9", "3.46/12 pages"),
        (progress(1234, 99999, stage="reading"), "reading", "1234/99999"),
        (progress(7, None, unit="tokens"), "running", "7 tokens"),
        (("progress", {"current": "x", "total": []}), "running", "0"),
    ],
)
def test_progress_is_told_in_words(entry: tuple[str, dict[str, Any]], doing: str, counted: str) -> None:
    """What the processor says, and how much is done."""
    view = view_of(QUEUED, STARTED, entry)

    assert (view.doing(1.0), view.counted()) == (doing, counted)


def test_the_processors_own_estimate_is_counted_down() -> None:
    """Between two reports the clock goes on."""
    view = view_of(QUEUED, STARTED, progress(1, 4, eta_seconds=100))

    assert view.eta(2.0) == "1:40 left"
    assert view.eta(50.5) == "0:52 left"
    assert view.eta(500.0) == "0:00 left"


def test_without_an_estimate_the_pace_is_one() -> None:
    """One page a second, and seven to go."""
    view = view_of(QUEUED, STARTED, progress(1, 10), progress(2, 10), progress(3, 10))

    assert view.eta(4.0) == "0:07 left"
    assert view_of(QUEUED, STARTED, progress(1, 10)).eta(3.0) == ""
    assert view_of(QUEUED, STARTED, progress(1), progress(2)).eta(4.0) == ""
    assert view_of(QUEUED, STARTED, progress(1, 9000), progress(2, 9000)).eta(3.0) == "2:29:58 left"


def test_a_new_attempt_begins_its_estimate_anew() -> None:
    """And says that it is another attempt, and why."""
    view = view_of(QUEUED, STARTED, progress(8, 10, eta_seconds=3), ("retrying", {"problem": PROBLEM}))
    assert view.doing(1.0) == "queued again: The worker was silent for 30 s."
    assert view.eta(9.0) == ""

    view.take(decode_event(event_text(5, "started", {}, attempt=2)), 9.0)

    assert view.doing(1.0) == "running (attempt 2)"
    assert (view.counted(), view.eta(9.0)) == ("", "")


def test_a_cancel_request_shows() -> None:
    """A running job ends when its processor notices."""
    assert view_of(QUEUED, STARTED, ("cancel_requested", {"by": "me"})).doing(1.0) == "running, asked to stop"


def test_a_silent_worker_is_told_and_forgotten_when_it_writes() -> None:
    """A heartbeat of the gateway must not hide a dead worker."""
    view = view_of(QUEUED, STARTED)
    view.take(transient("liveness", {"worker": "w-1", "silent_seconds": 12.0}), 2.0)
    assert view.warnings(None) == []

    view.take(transient("liveness", {"worker": "w-1", "silent_seconds": 27.3}), 3.0)
    assert view.warnings(None) == ["the worker has been silent for 27 s"]

    view.take(numbered(QUEUED, STARTED, progress(1))[2], 4.0)
    assert view.warnings(None) == []


def test_a_lost_connection_and_its_return_are_told() -> None:
    """ "reconnected 3 times, missed 0"."""
    view, lost = view_of(QUEUED), subscription()
    assert view.warnings(lost) == []

    lost.state, lost.last_error = "waiting", Unreachable("x")
    assert view.warnings(lost) == ["connection lost, trying again"]

    lost.state, lost.last_error, lost.reconnects = "open", None, 1
    assert view.warnings(lost) == ["reconnected once, missed 0"]
    lost.reconnects, lost.missed = 3, 7
    assert view.warnings(lost) == ["reconnected 3 times, missed 7"]


def test_a_log_that_cannot_be_folded_ends_nothing() -> None:
    """A gateway of tomorrow may know steps that this release does not."""
    view = view_of(QUEUED)

    view.take(numbered(QUEUED, ("succeeded", {"result": 1}))[1], 1.0)

    assert view.doing(1.0) == "queued"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("page 3 \u00b7 Gr\u00fc\u00dfe \u6f22", "page 3 \u00b7 Gr\u00fc\u00dfe \u6f22"),
        ("\x1b[2J\x1b]0;title\x07red", "[2J ]0;title red"),
        ("a\nb\r\nc\td", "a b  c d"),
        ("\u202egnp.exe", "gnp.exe"),
        ("a\x9b31mb", "a 31mb"),
    ],
)
def test_a_processors_words_cannot_steer_the_terminal(text: str, shown: str) -> None:
    """They may come from a document that somebody made for it."""
    assert printable(text) == shown


def follow(shown: Display, *entries: tuple[str, dict[str, Any]]) -> None:
    """Show these events."""
    shown.follow(subscription())
    for event in numbered(*entries):
        shown.take(event)


def test_lines_tell_changes_and_not_every_step() -> None:
    """A log file of a thousand pages has no thousand lines."""
    out = io.StringIO()
    steps = [progress(number, 1000, unit="pages") for number in range(1000)]

    shown = Lines("ocr scan.pdf", out)
    shown.upload(10, 20)
    shown.upload(20, 20)
    follow(shown, QUEUED, STARTED, *steps, ("cancel_requested", {}), ("log", {"message": "no\x1b text"}))

    assert out.getvalue().splitlines() == [
        "ocr scan.pdf: 20 bytes sent",
        "ocr scan.pdf: queued",
        "ocr scan.pdf: running",
        "ocr scan.pdf: running, asked to stop, 999/1000 pages, 0:00 left",
        "no  text",
    ]


def screen() -> Console:
    """A terminal of 100 columns."""
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, legacy_windows=False)


def shown_on(console: Console) -> str:
    """What was written to it."""
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_bars_show_the_upload_and_then_the_job() -> None:
    """And leave nothing behind but what was said."""
    console = screen()
    shown = Bars("ocr scan.pdf", console)
    shown.upload(500_000, 1_000_000)
    console.print(shown._render())
    assert "sending" in shown_on(console)
    assert "0.5/1.0 MB" in shown_on(console)

    follow(shown, QUEUED, STARTED, progress(3, 12, unit="pages", message="page 4 [bold]", eta_seconds=30))
    assert shown.subscription is not None
    shown.subscription.reconnects = 1
    console.print(shown._render())

    said = shown_on(console)
    assert "3/12 pages" in said
    assert "0:30 left" in said
    assert "page 4 [bold]" in said
    assert "reconnected once, missed 0" in said


def test_bars_are_live_within_their_block() -> None:
    """Logs and what is said stand above them."""
    console = screen()

    with Bars("[red]ocr", console) as shown:
        follow(shown, QUEUED, STARTED, ("log", {"message": "deskewed [page] 3"}))
        shown.say("job [x]")

    said = shown_on(console)
    assert "deskewed [page] 3" in said
    assert "job [x]" in said
    assert "[red]ocr" in said


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """`--quiet`, for scripts."""
    with display("ocr", quiet=True) as shown:
        shown.upload(1, 2)
        follow(shown, QUEUED, STARTED)
        shown.say("x")

    assert isinstance(shown, Silent)
    assert capfd.readouterr() == ("", "")


def test_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars would fill a log file with control characters."""
    assert isinstance(display("ocr", quiet=False), Lines)
