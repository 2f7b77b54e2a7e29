"""How long a client tries again."""

from __future__ import annotations

import pytest

from gateway.client.answers import Answer
from gateway.client.connection import Connection
from gateway.client.credentials import Credentials
from gateway.client.parts import Parts
from gateway.client.upload import File, Meter, prepare
from gateway.errors import Unavailable, Unreachable


@pytest.mark.parametrize("code", ["upload_joining", "store_unavailable"])
async def test_what_the_gateway_is_at_work_on_is_waited_for(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The patience is for a gateway that does nothing; one that joins an upload's parts comes to an end."""
    connection = Connection(
        "http://gateway", Credentials(), silence_seconds=1, patience_seconds=0.05, backoff_seconds=0.01
    )
    answers = iter([Unavailable("Later.", code=code)] * 40)
    asked = 0

    async def ask(*_: object, **__: object) -> Answer:
        nonlocal asked
        asked += 1
        if (error := next(answers, None)) is not None:
            raise error
        return Answer(202, {}, b"{}")

    monkeypatch.setattr(connection, "_request_once", ask)
    if code == "upload_joining":
        await connection.request("POST", "/")
    else:
        with pytest.raises(Unavailable):
            await connection.request("POST", "/")
    await connection.close()

    assert (asked == 41) is (code == "upload_joining")


async def test_what_answers_an_upload_in_the_gateways_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A portal's page is no JSON, and no error of the program that uploads."""
    connection = Connection(
        "http://gateway", Credentials(), silence_seconds=1, patience_seconds=1, backoff_seconds=0.01
    )

    async def ask(*_: object, **__: object) -> Answer:
        return Answer(200, {}, b"<html>Welcome to our network</html>")

    monkeypatch.setattr(connection, "_request_once", ask)
    parts = Parts(connection, part_bytes=10, first_bytes=10, patience_seconds=1)
    with pytest.raises(Unreachable, match="no JSON"):
        await parts.send("ocr", prepare([File(b"x", name="x")])[0], Meter(None, 1))
    await connection.close()
