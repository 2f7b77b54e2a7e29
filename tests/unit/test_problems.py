"""How requests that go wrong are answered and logged."""

from __future__ import annotations

import logging

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.handlers.problems import problem_middleware
from gateway.metrics import Registry


async def test_a_client_that_goes_while_its_answer_begins_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Its transport closes between the handler's last wait and the answer's head: 499, and nothing to be alarmed by."""

    async def stream(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    app = web.Application(middlewares=[problem_middleware(Registry())])
    app.router.add_get("/", stream)
    with caplog.at_level(logging.INFO):
        async with TestClient(TestServer(app)) as client:
            with pytest.raises(ClientError):
                await client.get("/")

    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert " 499 " in caplog.text
