r"""Keep your FastAPI application: its page submits slow work without a key, or follows what the application submits.

pip install fastapi uvicorn
uvicorn examples.fastapi_app:app --port 8001         # beside `make run MODULES=examples.word_count`
curl http://127.0.0.1:8001/api/count -H 'Content-Type: application/json' -d '{"text": "one fish\ntwo fish"}'
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Cookie, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from gateway.client import Client
from gateway.errors import OutlastError

client = Client(os.environ.get("OUTLAST_URL", "http://127.0.0.1:8080"), api_key=os.environ.get("OUTLAST_API_KEY"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """One client for all requests."""
    async with client:
        yield


app = FastAPI(lifespan=lifespan)


class Text(BaseModel):
    text: str


class Accepted(BaseModel):
    id: str
    watch: str


@app.post("/api/count", status_code=202)
async def count(text: Text, idempotency_key: Annotated[str | None, Header()] = None) -> Accepted:
    """Where the slow work was: it is a job now, and the page gets what it needs to follow it."""
    job = await client.submit("word-count", text, idempotency_key=idempotency_key)
    return Accepted(id=job.id, watch=job.document.urls.watch)


@app.post("/api/token")
async def token(response: Response, visitor: Annotated[str | None, Cookie()] = None) -> dict[str, Any]:
    """For a page that submits by itself: for a quarter of an hour it may, to this kind and as this visitor."""
    # Anybody can send any cookie, so it holds a name that can't be guessed; of who is logged in, take your session's.
    visitor = visitor or secrets.token_hex(16)
    response.set_cookie("visitor", visitor, httponly=True, samesite="strict")
    return await client.make_token(kind="word-count", user=visitor)


@app.exception_handler(OutlastError)
async def refused(_: Request, error: OutlastError) -> JSONResponse:
    """What the gateway refuses is for the page to read: a wrong field, a full queue."""
    return JSONResponse(error.problem(), error.status, media_type="application/problem+json")
