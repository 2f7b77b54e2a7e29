"""Keep your Ray cluster: a processor hands its jobs over to an actor that has the model in memory.

RAY_ADDRESS=auto OUTLAST_REDIS_URL=redis://localhost:6379/0 outlast worker examples.ray_app
outlast submit embed --input '{"texts": ["one fish", "two fish"]}'
"""

import os
from typing import Any

import ray
from pydantic import BaseModel

from processors import LeaseLost, Reporter, SyncContext, processor

# How long a call may wait for a place in the cluster; then the job is handed over anew.
WAIT_SECONDS = 600


class Embedder:
    """Lives on some machine of the cluster, and loads its model once."""

    def __init__(self) -> None:
        self.letters = "abcdefghijklmnopqrstuvwxyz"  # as if it were a large model

    def embed(self, token: str) -> None:
        """Do one attempt at a job."""
        try:
            with Reporter(token) as job:
                texts = job.input["texts"]
                for number, text in enumerate(texts, 1):
                    job.output(number, [text.lower().count(letter) for letter in self.letters])
                    job.progress(number, len(texts), unit="texts")
                job.result = {"texts": len(texts), "dimensions": len(self.letters)}
        except LeaseLost:
            pass  # too late: the job is somebody else's, or has ended

    def pid(self) -> int:
        """The process that it is."""
        return os.getpid()


class Texts(BaseModel):
    texts: list[str]


async def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here; its machines get what a reporter needs to know."""
    # Not a plain function: that would run in a thread, and the processes that Ray starts here end with their thread.
    settings = {name: value for name, value in os.environ.items() if name.startswith("OUTLAST_")}
    ray.init(address=os.environ.get("RAY_ADDRESS"), namespace="outlast-examples", runtime_env={"env_vars": settings})


def embedder() -> Any:
    """The actor, one for all workers; Ray starts it again if it dies."""
    options = {"name": "embedder", "lifetime": "detached", "get_if_exists": True, "num_cpus": 1}
    # A call that the dead actor never began reaches its replacement; one that it had begun finds its token used up.
    options |= {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Embedder).options(**options).remote()


@processor("embed", setup=connect)
def embed(ctx: SyncContext, input: Texts) -> None:
    """Embed texts, on the machines that Ray has."""
    embedder().embed.remote(ctx.hand_over(WAIT_SECONDS))
