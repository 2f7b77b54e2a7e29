"""Every `code` that a problem document can carry, with its meaning, for the docs page.

`docs/errors.md` is the same table for readers of the repository; a test holds both against the code that raises them.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Meaning(NamedTuple):
    """Where a code is met (a status, or an event), what it means, and what to do."""

    where: str
    meaning: str
    advice: str


_FAILED: Final = "`failed`"
_PAGE: Final = "a page's output, `failed`"
_RETRYING: Final = "`retrying`, `failed`"

PROBLEM_CODES: Final[dict[str, Meaning]] = {
    # The request
    "bad_request": Meaning("400", "The request is malformed.", "Read the detail; it names what is wrong."),
    "bad_json": Meaning(
        "400",
        "A JSON text can't be read, or two readers could understand it differently.",
        "Mend it where the detail says; no name twice, no NaN, no endless digits.",
    ),
    "bad_multipart": Meaning(
        "400",
        "A multipart body is broken.",
        "Let a library make it; don't set its Content-Type by hand, the boundary belongs to it.",
    ),
    "bad_cursor": Meaning(
        "400",
        "A cursor is none, or lies beyond the job's last event.",
        "Use the last `id:` as it came, or 0 for the start.",
    ),
    "cursor_lost": Meaning(
        "400",
        "What follows the cursor is gone or was rewritten, and a JSON page can't say so otherwise.",
        "Start again with `?after=0`, or follow the stream: it sends a snapshot.",
    ),
    "bad_idempotency_key": Meaning("400", "An Idempotency-Key is empty, too long or not ASCII.", "Use a UUID."),
    "bad_frame": Meaning(
        "WebSocket", "A frame is not valid; `errors` names the fields.", "Mend the frame; the socket stays open."
    ),
    "key_in_query": Meaning(
        "400",
        "An API key stands in the address, which is logged.",
        "Send it as `Authorization: Bearer ...`, and change it.",
    ),
    "websocket_expected": Meaning("400", "The address speaks WebSocket only.", "Open it with ws:// or wss://."),
    "already_subscribed": Meaning(
        "WebSocket", "The socket hears this job already.", "Unsubscribe first, or go on listening."
    ),
    "unauthorized": Meaning(
        "401", "No API key or token, or one that is not known.", "Send `Authorization: Bearer ...`."
    ),
    "token_expired": Meaning(
        "401",
        "A token's time is over.",
        "Fetch a fresh one; our clients do so by themselves where `token` is a function.",
    ),
    "write_token": Meaning(
        "401",
        "No write token, or one that is made up or too old; an API key opens nothing at this door.",
        "Send the token that `ctx.hand_over` gave, or an adoption answered: `Authorization: Bearer w1~...`.",
    ),
    "probe_token": Meaning(
        "401",
        "A route of the probes was called without the token that opens them.",
        "Give `outlast doctor` the gateway's OUTLAST_PROBE_TOKEN.",
    ),
    "forbidden": Meaning(
        "403",
        "The token is good, but not for this: another job or kind, or what only an API key may do.",
        "The detail says what it is for; fetch another, or let your server ask with its key.",
    ),
    "operators_only": Meaning(
        "403", "Only an operator may pause or resume a kind.", "Add the key's name to OUTLAST_OPERATORS."
    ),
    "foreign_origin": Meaning(
        "403",
        "A page of another origin made the request.",
        "Add its origin to OUTLAST_ALLOWED_ORIGINS, if it should be able to.",
    ),
    "foreign_host": Meaning(
        "403",
        "A gateway without API keys was called by a name that is not this machine's.",
        "Set OUTLAST_API_KEYS, or add the address to OUTLAST_ALLOWED_ORIGINS.",
    ),
    "not_found": Meaning("404", "There is nothing under this address.", "See the routes."),
    "job_not_found": Meaning("404", "There is no such job, or it is another owner's.", "Check the id and the key."),
    "upload_not_found": Meaning(
        "404", "There is no such upload, it has expired, or it is another owner's.", "Begin a new one."
    ),
    "unknown_kind": Meaning(
        "404",
        "No worker has ever offered this kind of work.",
        "The detail names those that are known; start a worker for a new one.",
    ),
    "method_not_allowed": Meaning(
        "405", "The route does not serve this method.", "The header Allow names those that it serves."
    ),
    "not_acceptable": Meaning(
        "406",
        "The result does not exist in the form that Accept asks for.",
        "The detail names the forms that there are.",
    ),
    "request_timeout": Meaning(
        "408", "The body stopped coming, or came too slowly.", "Send it again, with the same Idempotency-Key."
    ),
    "conflict": Meaning("409", "Not possible in the job's present state.", "Read the job."),
    "not_finished": Meaning(
        "409",
        "The result was asked for before the job's end.",
        "Wait for the end on its events; Retry-After says when to ask again.",
    ),
    "still_open": Meaning("409", "Only an ended job can be retried or deleted.", "Wait for its end, or cancel it."),
    "lease_lost": Meaning(
        "409",
        "The write token's attempt has lost the job, was adopted by another, or the job has ended.",
        "Stop: nothing that you report is taken any more.",
    ),
    "resubmitted_stream": Meaning(
        "409",
        "A POST with Last-Event-ID and without Idempotency-Key: which job it means can't be known.",
        "Go on with GET on the job's events.",
    ),
    "wrong_offset": Meaning(
        "409", "A part of an upload does not begin where the upload stands; `offset` says where.", "Go on from there."
    ),
    "upload_incomplete": Meaning(
        "409", "A submit names an upload of which a part is missing.", "Send the rest, then submit again."
    ),
    "tus_version": Meaning(
        "412", "Uploads speak the tus protocol, version 1.0.0.", "Send the header `Tus-Resumable: 1.0.0`."
    ),
    "expired": Meaning("410", "The job has ended, and its retention time is over.", "Submit it again, with a new key."),
    "too_large": Meaning(
        "413", "The body is over the limit.", "Send less, or have the operator raise OUTLAST_MAX_UPLOAD_BYTES."
    ),
    "input_too_large": Meaning(
        "413, `failed`",
        "JSON is over the limit for what stands in a job's record, or a file over what OCR reads.",
        "Send large JSON as a file; split a large file.",
    ),
    "input_too_complex": Meaning(
        "422",
        "An input fits so many alternatives of the kind's schema that checking it takes too long.",
        "Nest it less deeply, or send less at once.",
    ),
    "too_many_files": Meaning("413", "A form has too many files or parts.", "Send several jobs, or an archive."),
    "log_full": Meaning(
        "413", "A worker elsewhere has reported 64 MiB of events.", "PUT what is large as an output, and end the job."
    ),
    "too_many_parts": Meaning("413", "An upload came in too many pieces.", "Begin again, with larger ones."),
    "unsupported_type": Meaning(
        "415", "The body's content type is not read by this kind.", "The detail names those that are."
    ),
    "file_not_allowed": Meaning("415", "The kind takes no files.", "Send application/json."),
    "range_not_satisfiable": Meaning(
        "416", "The range has no byte of the content.", "`size` says how many bytes there are."
    ),
    "invalid_input": Meaning(
        "422", "Well formed, but a field is wrong or unknown; `errors` names each and why.", "Mend these fields."
    ),
    "file_required": Meaning("422", "The kind needs a file.", "Send it as the body, or as a part of a form."),
    "file_empty": Meaning("422", "A file has no bytes.", "Check what was sent."),
    "idempotency_key_reused": Meaning(
        "422",
        "The Idempotency-Key was used for another request.",
        "A new request needs a new key; to repeat the old one, send the same again.",
    ),
    "job_failed": Meaning(
        "422",
        "A result was asked for, but the job failed; `problem` says why.",
        "`POST .../retry` makes a new job of it.",
    ),
    "job_cancelled": Meaning(
        "422", "A result was asked for, but the job was cancelled.", "`POST .../retry` makes a new job of it."
    ),
    "too_many": Meaning("429", "The caller is over one of its own limits.", "Wait for Retry-After."),
    "too_many_failures": Meaning(
        "429", "Many requests with a wrong key came from this address.", "Check the key; a good one is still let in."
    ),
    "too_many_streams": Meaning(
        "429",
        "The owner has too many streams open on this gateway.",
        "Close some, or follow many jobs over one WebSocket.",
    ),
    "too_many_subscriptions": Meaning(
        "WebSocket", "The socket hears as many jobs as one may.", "Unsubscribe some, or open another."
    ),
    "too_many_uploads": Meaning(
        "429", "The owner has too many uploads open.", "`DELETE` those that are not needed; the others end in a day."
    ),
    "owner_queue_full": Meaning(
        "429", "The owner has too many jobs of this kind waiting.", "Submit again when some have begun."
    ),
    "internal": Meaning(
        "500",
        "Something unforeseen went wrong on our side.",
        "Try again; if it lasts, tell the operator the `request_id`.",
    ),
    "store_unavailable": Meaning(
        "503", "Redis does not answer. What was accepted is kept.", "Try again with the same key."
    ),
    "store_full": Meaning(
        "503", "Redis has no memory left for new jobs.", "Try again later; the operator raises `maxmemory`."
    ),
    "not_durable": Meaning(
        "503",
        "The write could not be confirmed as `OUTLAST_DURABILITY` asks.",
        "Try again with the same key: the job may have been accepted.",
    ),
    "blobs_unavailable": Meaning("503", "The store for files does not answer.", "Try again with the same key."),
    "upload_joining": Meaning(
        "503",
        "A submit names a large upload whose parts are still being put together.",
        "Submit it again after `Retry-After`; our clients do so by themselves.",
    ),
    "no_worker": Meaning(
        "503",
        "A slow route or OpenAI's API was called, and no worker that does it has been here.",
        "The detail says what starts one.",
    ),
    "queue_full": Meaning("503", "The queue of this kind is full.", "Try again later."),
    "too_many_connections": Meaning(
        "503", "The gateway has as many connections as it takes.", "Come back after Retry-After."
    ),
    "draining": Meaning("503", "This gateway is stopping.", "Come back: another one answers."),
    # The job
    "rejected": Meaning(
        _FAILED,
        "The processor refused the input; `errors` may name fields.",
        "Mend the input; a retry would end the same.",
    ),
    "processor_error": Meaning(
        _RETRYING, "The processor failed unexpectedly.", "It is tried again; the worker's log says why."
    ),
    "retry_requested": Meaning(_RETRYING, "The processor asked to be tried again later.", "Nothing."),
    "retries_exhausted": Meaning(
        _FAILED, "All attempts failed; `cause` is the last one's code.", "Mend the cause, then `POST .../retry`."
    ),
    "worker_lost": Meaning(_RETRYING, "The worker stopped answering.", "Nothing: another one takes over."),
    "worker_stopping": Meaning(
        "`retrying`", "The worker stopped and handed the job back.", "Nothing: it costs no attempt."
    ),
    "events_lost": Meaning(
        "`retrying`", "Redis lost events of this attempt, so another one begins.", "Nothing: it costs no attempt."
    ),
    "run_timeout": Meaning(
        _FAILED, "An attempt ran longer than its run time-out.", "Submit with a larger `run_timeout_seconds`."
    ),
    "start_deadline": Meaning(
        _FAILED, "No attempt had begun before the start deadline.", "Start more workers, or allow more time."
    ),
    "deadline": Meaning(_FAILED, "The job was open longer than any job may be.", "Split the work."),
    # What the built-in OCR says of a file or a page
    "input_empty": Meaning(_FAILED, "There is no file, or it has no pages.", "Check what was sent."),
    "input_unreadable": Meaning(_FAILED, "The file is broken.", "Save or scan it again."),
    "input_unsupported": Meaning(
        _FAILED, "The file, or what was asked of it, is nothing that OCR reads.", "The detail says what is read."
    ),
    "input_encrypted": Meaning(_FAILED, "The PDF is protected by a password.", "Save it without one."),
    "input_timeout": Meaning(_FAILED, "The file took too long to open.", "Save it again."),
    "page_unreadable": Meaning(_PAGE, "A page is broken; the others are read.", "Scan it again."),
    "page_too_large": Meaning(_PAGE, "A page has too many pixels.", "Scan it with fewer dots per inch."),
    "page_timeout": Meaning(_PAGE, "A page took too long to decode.", "Scan or save it again."),
    "page_failed": Meaning(_PAGE, "The engine failed on a page.", "It is tried again; then submit it again."),
    "language_unavailable": Meaning(
        _FAILED, "The engine does not have a language that was asked for.", "The detail names those that it has."
    ),
    "step_failed": Meaning(
        _FAILED,
        "A step of the job failed and gave no code of its own; `step` names it.",
        "Read the detail; the step's job is in `job`.",
    ),
    "step_cancelled": Meaning(
        _FAILED,
        "A step of the job was cancelled by somebody; `step` names it.",
        "Do it again if it was a mistake.",
    ),
    "step_input": Meaning(
        _FAILED,
        "What a step was to be given can't be made of the results before it, or is no JSON object; `step` names it.",
        "Mend what makes it; the worker's log says more.",
    ),
    "step_result": Meaning(
        _FAILED,
        "What a pipeline's last step returned is not what the pipeline promises; `step` names it, `errors` say what.",
        "Mend the step, or the type that the pipeline names.",
    ),
    "too_many_steps": Meaning(
        _FAILED, "A job made more than 1,000 steps.", "Let steps do more each, or make several jobs of it."
    ),
    "process_died": Meaning(
        _RETRYING,
        "The child process that did the work crashed or was killed.",
        "The worker's log has what it printed.",
    ),
    "out_of_memory": Meaning(
        _RETRYING,
        "The work needed more memory than its kind allows, or than the machine or the container has.",
        "Send less at once, or raise `memory_bytes`; if it is the system's, take fewer at once or give it more.",
    ),
    "batch_stuck": Meaning(
        _RETRYING,
        "An earlier batch of the worker goes on although all its jobs have left it, so no other can begin.",
        "It is tried again, by another worker if there is one; have the function ask `ctx.cancelled`.",
    ),
    "engine_unavailable": Meaning(
        _FAILED,
        "The engine that was asked for is not installed where the worker runs.",
        "Install it there, or take another one.",
    ),
    # What calling an upstream can come to
    "upstream_not_http": Meaning(
        "422, `failed`", "The URL is one of another scheme than http or https, or of none.", "Begin it with https://."
    ),
    "upstream_bad_url": Meaning(
        "422, `failed`",
        "The URL is broken, or could be read in two ways.",
        "Write it as https://host:port/path, in ASCII, without a user, a fragment or dot segments.",
    ),
    "upstream_not_allowed": Meaning(
        "422, `failed`",
        "The URL is not among those that may be called, or the path is no slow route, or not for this method.",
        "The operator lists it in OUTLAST_UPSTREAMS or in the route file, or not.",
    ),
    "upstream_private": Meaning(
        "422, `failed`",
        "The host stands for an address that is not public, and is not meant to.",
        "If it is meant, the operator adds its network to OUTLAST_UPSTREAM_NETWORKS.",
    ),
    "upstream_unreachable": Meaning(
        _RETRYING, "The upstream takes no connections, or its name is not known.", "Start it, or mend its address."
    ),
    "upstream_connect_timeout": Meaning(
        _RETRYING,
        "The upstream took no connection within OUTLAST_UPSTREAM_CONNECT_SECONDS.",
        "Look at a firewall between it and the worker, and at the upstream's load.",
    ),
    "upstream_tls": Meaning(
        _FAILED, "The upstream's certificate can't be trusted, or it speaks no TLS.", "Mend its certificate."
    ),
    "upstream_broke_off": Meaning(
        _RETRYING,
        "The upstream closed the connection before its answer was whole.",
        "Look at the upstream's log; a request that is safe to repeat was repeated.",
    ),
    "upstream_silent": Meaning(
        _RETRYING,
        "Nothing came of the upstream's answer for OUTLAST_UPSTREAM_IDLE_SECONDS, and it didn't close the connection.",
        "Look whether the upstream hangs; if it needs longer pauses, raise the setting.",
    ),
    "upstream_wrong_length": Meaning(
        _RETRYING, "The upstream sent fewer bytes than it had announced.", "Mend its Content-Length."
    ),
    "upstream_garbage": Meaning(
        _RETRYING, "What the upstream answered is no HTTP.", "Check that this port speaks it, and its headers' size."
    ),
    "upstream_too_large": Meaning(
        _FAILED,
        "The upstream's answer, or the file behind a URL, is over OUTLAST_MAX_UPSTREAM_BYTES.",
        "Ask for less, or have the operator raise it.",
    ),
    "upstream_redirected": Meaning(
        _FAILED,
        "The upstream redirected to another origin, to what is not listed, or too often.",
        "Call the address that is meant.",
    ),
    "upstream_redirected_private": Meaning(
        _FAILED,
        "The upstream redirected to an address or a name of a private network, or of the machine itself.",
        "It was not called. If it is no attack, mend the upstream's idea of its own address.",
    ),
    "input_url_failed": Meaning(
        _RETRYING,
        "The server of `input_url` answered with another status than a success.",
        "Check the address; what it answers with 429 or 5xx is tried again.",
    ),
    "upstream_status": Meaning(
        "`error` of a slow route",
        "The upstream's answer is no success in JSON, and came after the head had been sent.",
        "`status` is the upstream's; the answer is at `response_url` as it came.",
    ),
    "upstream_unknown": Meaning(
        _FAILED,
        "A worker stopped while the upstream had a request that is not safe to repeat.",
        "Look whether it was done; an Idempotency-Key that the upstream knows makes it safe.",
    ),
    # What asking a language model can come to
    "llm_unknown_model": Meaning(
        _FAILED,
        "The model server has no such model, or OUTLAST_LLM_MODELS doesn't list it.",
        "The detail says which there are, or what the server said.",
    ),
    "llm_context_too_long": Meaning(
        _FAILED, "The messages are longer than the model's context.", "Send less, or ask a model with a longer context."
    ),
    "llm_refused": Meaning(
        _FAILED, "The model server refuses the request as it is.", "The detail has its own words; mend the parameter."
    ),
    "llm_unauthorized": Meaning(
        _FAILED,
        "The model server refuses the gateway's own key.",
        "The operator mends OUTLAST_LLM_KEY; the worker's log has the server's words.",
    ),
    "llm_rate_limited": Meaning(
        _RETRYING,
        "The model server says that it is asked too much.",
        "It is tried again when the server says; `retry_after_seconds` where that is too far off.",
    ),
    "llm_upstream_failed": Meaning(
        _RETRYING,
        "The model server failed, before or in the midst of its answer.",
        "Look at the server's log; what was said by then is kept.",
    ),
    "llm_broke_off": Meaning(
        _RETRYING,
        "The model server's stream ended before the answer did.",
        "Look at the server's log; what was said by then is kept.",
    ),
    "llm_garbage": Meaning(
        _RETRYING,
        "What the model server sent is no JSON of OpenAI's form.",
        "Check that OUTLAST_LLM_URL is the base URL of an OpenAI-compatible API; it often ends in /v1.",
    ),
    # Inside, or on a client's side
    "configuration": Meaning("start", "A setting is wrong.", "The message names it and what to set."),
    "bad_stream": Meaning(
        "client",
        "A stream held something that is no event, or numbers with a hole.",
        "Nothing: the client reads the log again from there.",
    ),
    "file_unreadable": Meaning(
        "client", "A file that should be sent can't be read.", "Check its path and its permissions."
    ),
    "tls_failed": Meaning(
        "client", "The gateway's certificate can't be trusted, or it speaks no TLS.", "Check the address."
    ),
    "websocket_refused": Meaning("client", "What stands in between does not let WebSockets pass.", "Use SSE."),
    "unreachable": Meaning("client", "No answer came from the gateway.", "The client tries again by itself."),
}
