"""The Python client: `async with Client(url) as client`.

Needs only the wire rooms (`protocol`, `fold`, `sse`, `errors`); pydantic and aiohttp once a client is opened.
"""

from gateway.client.client import Client, Job
from gateway.client.subscription import Subscription
from gateway.client.upload import File

__all__ = ["Client", "File", "Job", "Subscription"]
