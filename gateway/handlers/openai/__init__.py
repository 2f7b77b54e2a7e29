"""The door for clients of OpenAI's API: its routes, its documents and its errors, over jobs of the kind `llm`.

A request becomes a job as any other, and an answer is translated from the job's events or its record. Nothing here
calls a model; a worker does.
"""
