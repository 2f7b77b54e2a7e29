"""What a terminal shows of a job while it runs: bars where there is a terminal, plain lines where there is none.

All of it goes to stderr: stdout is for the result.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from gateway.client import Subscription
from gateway.fold import Fold
from gateway.protocol import Event, EventType, State

# A worker shows that it lives every third of its lease (30 s by default); more silence than this is worth a word.
_SILENCE_SECONDS: Final = 15.0
_PLAIN_SECONDS: Final = 5.0
_REFRESHES_PER_SECOND: Final = 8


class View:
    """What is known of a job: its fold, and what events without a number say. Pure; `now` is `time.monotonic`."""

    def __init__(self, job: str) -> None:
        self.fold = Fold(job)
        self.position: int | None = None
        self.silent_seconds = 0.0
        self.problem = ""
        """Why the last attempt did not end the job."""
        self._begins_at: float | None = None
        self._eta_at: float | None = None
        self._began: tuple[float, float] | None = None

    def take(self, event: Event, now: float) -> None:
        """Take the next event."""
        with suppress(ValueError):
            # A log that this release can't fold is still followed to its end.
            self.fold = self.fold.follow(event)
        data = event.data
        match event.type:
            case EventType.POSITION:
                self.position = data.get("position")
                eta = data.get("eta_seconds")
                self._begins_at = now + eta if isinstance(eta, (int, float)) else None
            case EventType.LIVENESS:
                self.silent_seconds = float(data.get("silent_seconds") or 0)
                return
            case EventType.RETRYING:
                problem = data.get("problem") or {}
                self.problem = printable(str(problem.get("detail") or problem.get("code") or ""))
        if event.id is not None:
            # Who writes, lives.
            self.silent_seconds = 0.0
        if self.fold.progress is None:
            self._began = self._eta_at = None
        elif event.type in {EventType.PROGRESS, EventType.SNAPSHOT}:
            self._estimate(self.fold.progress.get("eta_seconds"), now)

    def _estimate(self, eta: object, now: float) -> None:
        """When it will be done: as the processor says, else by its pace since the first report that was seen."""
        current, total = self.amount
        began, at_first = self._began = self._began or (now, current)
        if isinstance(eta, (int, float)):
            self._eta_at = now + eta
        elif total is not None and current > at_first and now > began:
            self._eta_at = now + (total - current) * (now - began) / (current - at_first)
        else:
            self._eta_at = None

    @property
    def amount(self) -> tuple[float, float | None]:
        """How much is done, of how much; None where nobody knows."""
        progress = self.fold.progress or {}
        current, total = progress.get("current"), progress.get("total")
        return (
            float(current) if isinstance(current, (int, float)) else 0.0,
            float(total) if isinstance(total, (int, float)) else None,
        )

    def eta(self, now: float) -> str:
        """When it will be done, counted down between two reports."""
        if self._eta_at is None or self.fold.state is not State.RUNNING:
            return ""
        return f"{_clock(self._eta_at - now)} left"

    def counted(self) -> str:
        """The amount in words: `3.5/12 pages`."""
        if self.fold.progress is None:
            return ""
        current, total = self.amount
        unit = printable(str(self.fold.progress.get("unit") or ""))
        done = f"{current:.3g}" if current < 100 else f"{current:.0f}"
        of = done if total is None else f"{done}/{total:.12g}"
        return f"{of} {unit}".strip()

    def doing(self, now: float) -> str:
        """What happens now."""
        fold = self.fold
        if fold.state is State.RUNNING:
            said = (fold.progress or {}).get("message") or (fold.progress or {}).get("stage") or "running"
            attempt = f" (attempt {fold.attempt})" if fold.attempt > 1 else ""
            return printable(str(said)) + attempt + (", asked to stop" if fold.cancel_requested else "")
        if fold.state is State.QUEUED:
            again = f" again: {self.problem}" if self.problem else ""
            place = f", position {self.position}" if self.position else ""
            begins = f", begins in about {_clock(self._begins_at - now)}" if place and self._begins_at else ""
            return "queued" + again + place + begins
        return str(fold.state or "waiting for the first event")

    def warnings(self, subscription: Subscription | None) -> list[str]:
        """What a person should know who waits: a silent worker, a lost connection, how often it was lost."""
        said = []
        if self.silent_seconds > _SILENCE_SECONDS and self.fold.state is State.RUNNING:
            said.append(f"the worker has been silent for {self.silent_seconds:.0f} s")
        if subscription is not None:
            if subscription.state in {"waiting", "connecting"} and subscription.last_error is not None:
                said.append("connection lost, trying again")
            if subscription.reconnects or subscription.missed:
                times = "once" if subscription.reconnects == 1 else f"{subscription.reconnects} times"
                said.append(f"reconnected {times}, missed {subscription.missed}")
        return said


class Display(ABC):
    """A job on stderr. As a context manager: what is live ends with it."""

    def __init__(self, title: str) -> None:
        self.title = printable(title)
        self.view = View("")
        self.subscription: Subscription | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def upload(self, sent: int, total: int | None) -> None:
        """So many bytes are on their way."""

    def follow(self, subscription: Subscription) -> None:
        """From now on, this subscription's events come."""
        self.view = View(subscription.job)
        self.subscription = subscription

    def take(self, event: Event) -> None:
        """The next event."""
        self.view.take(event, time.monotonic())

    @abstractmethod
    def say(self, text: str) -> None:
        """A line that stays."""


class Silent(Display):
    """`--quiet`."""

    def upload(self, sent: int, total: int | None) -> None:
        return None

    def say(self, text: str) -> None:
        return None


class Lines(Display):
    """Where stderr is a file or a pipe: a line when something changes, and now and then while it goes on."""

    def __init__(self, title: str, out: TextIO | None = None) -> None:
        super().__init__(title)
        self._out = out or sys.stderr
        self._last = ""
        self._last_at = float("-inf")

    def upload(self, sent: int, total: int | None) -> None:
        if total is not None and sent == total:
            self.say(f"{self.title}: {total} bytes sent")

    def take(self, event: Event) -> None:
        super().take(event)
        if event.type == EventType.LOG:
            self.say(printable(str(event.data.get("message", ""))))
        fold = self.view.fold
        if fold.terminal:
            # The command has the last word.
            return
        warnings = self.view.warnings(self.subscription)
        gist = f"{fold.state} {fold.attempt} {fold.cancel_requested} {warnings}"
        now = time.monotonic()
        if gist == self._last and now - self._last_at < _PLAIN_SECONDS:
            return
        self._last, self._last_at = gist, now
        said = (self.view.doing(now), self.view.counted(), self.view.eta(now), *warnings)
        self.say(", ".join(part for part in (f"{self.title}: {said[0]}", *said[1:]) if part))

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Bars(Display):
    """Where stderr is a terminal: a bar for the upload, then one for the job, redrawn in place."""

    def __init__(self, title: str, console: Console) -> None:
        super().__init__(title)
        self._console = console
        self._upload = Progress(
            SpinnerColumn(),
            TextColumn("sending"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
        )
        self._upload_task: TaskID | None = None
        self._job = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[counted]}", markup=False),
            TextColumn("{task.fields[eta]}", markup=False, style="cyan"),
            # Last: it changes its width all the time.
            TextColumn("{task.description}", markup=False, style="dim"),
            console=console,
        )
        self._job_task = self._job.add_task("", total=None, counted="", eta="")
        # Gone at the end: what stays is what `say` says.
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def upload(self, sent: int, total: int | None) -> None:
        if self._upload_task is None:
            self._upload_task = self._upload.add_task("", total=total)
        self._upload.update(self._upload_task, completed=sent)

    def take(self, event: Event) -> None:
        super().take(event)
        if event.type == EventType.LOG:
            self._console.print(Text(printable(str(event.data.get("message", ""))), style="dim"))

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def _render(self) -> RenderableType:
        title = Text(self.title, style="bold")
        if self.subscription is None:
            return Group(title, self._upload) if self._upload_task is not None else title
        view = self.view
        current, total = view.amount
        now = time.monotonic()
        self._job.update(
            self._job_task,
            description=view.doing(now),
            completed=current,
            total=total,
            counted=view.counted(),
            eta=view.eta(now),
        )
        warnings = [Text(f"  {warning}", style="yellow") for warning in view.warnings(self.subscription)]
        return Group(title, self._job, *warnings)


def display(title: str, *, quiet: bool) -> Display:
    """The display that stderr can show."""
    if quiet:
        return Silent(title)
    console = Console(stderr=True, highlight=False)
    return Bars(title, console) if console.is_terminal else Lines(title)


def printable(text: str) -> str:
    """A processor's text without what could steer the terminal: escape sequences, changes of direction, new lines."""
    return "".join(" " if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} else char for char in text).strip()


def _clock(seconds: float) -> str:
    """`4:07`, or `1:04:07`; never below zero."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
