"""What the gateway answers a client, read into documents.

Imported when a client is entered, so that `import gateway.client` waits for no pydantic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from gateway.documents import JobDocument, JobList, KindList, KindStatus, WireModel
from gateway.errors import Unreachable
from gateway.protocol import Event, read_event

_Document = TypeVar("_Document", bound=WireModel)


class _Outputs(WireModel):
    outputs: list[dict[str, Any]]
    next: int | None = None


@dataclass(frozen=True)
class Answer:
    """An answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type without its parameters."""
        return self.headers.get("Content-Type", "").split(";", 1)[0].strip().lower()

    def json(self) -> Any:
        """The body's JSON. Raises `Unreachable` if it is none: then it isn't the gateway's."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unreachable(
                f"Something answered {self.status} with a body that is no JSON; check that the address is a gateway's."
            ) from None

    def job(self) -> JobDocument:
        """The job that it holds."""
        return self._read(JobDocument)

    def jobs(self) -> JobList:
        """The page of jobs that it holds."""
        return self._read(JobList)

    def kinds(self) -> list[KindStatus]:
        """The kinds that it holds."""
        return self._read(KindList).kinds

    def kind(self) -> KindStatus:
        """The kind that it holds."""
        return self._read(KindStatus)

    def outputs(self) -> tuple[list[Event], int | None]:
        """The output events that it holds, and after which number the next page begins, if there is one."""
        page = self._read(_Outputs)
        try:
            return [read_event(value) for value in page.outputs], page.next
        except ValueError:
            raise self._is_none() from None

    def _read(self, model: type[_Document]) -> _Document:
        try:
            return model.model_validate_json(self.body)
        except ValidationError:
            raise self._is_none() from None

    def _is_none(self) -> Unreachable:
        return Unreachable(
            f"Something answered {self.status} with what is no answer of a gateway's; check the address."
        )
