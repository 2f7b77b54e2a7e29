"""The mutants: what is taken out of the code, and the few tests of which at least one must fail then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutant:
    """One edit: in `file` (below `gateway/`), `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_FENCES: Final = "tests/integration/test_store_fences.py::"
_LOG: Final = "tests/integration/test_store_log.py::"
_JOBS: Final = "tests/integration/test_store_jobs.py::"
_QUEUE: Final = "tests/integration/test_store_queue.py::"
_STEPS: Final = "tests/integration/test_steps_faults.py::"
_HUB: Final = "tests/integration/test_hub.py::"
_PARENTS: Final = "tests/integration/test_steps.py::"
_LEAVING: Final = "tests/integration/test_on_disconnect.py::"
_HANDOVER: Final = "tests/integration/test_store_handover.py::"
_TOKENS: Final = "tests/integration/test_http_tokens.py::"

_FENCE: Final = "if record[1] ~= attempt then"
_PUBLISH_FIRST: Final = """\
redis.call('SPUBLISH', KEYS[7], int(record[10] + 1) .. '-1 ' .. ARGV[10] .. ' {' .. ARGV[11])
"""

MUTANTS: Final = (
    # --- who may write
    Mutant(
        "drop the attempt check",
        "store/lua/append.lua",
        "if record[1] ~= attempt then",
        "if false then",
        (_FENCES + "test_a_writer_that_says_another_attempt_is_refused",),
    ),
    Mutant(
        "drop the nonce",
        "store/lua/append.lua",
        "if record[2] ~= 'running' or record[3] ~= nonce then",
        "if record[2] ~= 'running' then",
        (_LOG + "test_a_writer_of_an_earlier_attempt_is_fenced_out",),
    ),
    Mutant(
        "drop the state check",
        "store/lua/append.lua",
        "if record[2] ~= 'running' or record[3] ~= nonce then",
        "if record[3] ~= nonce then",
        (_FENCES + "test_nobody_writes_to_a_job_that_nobody_runs",),
    ),
    Mutant(
        "drop the batch check",
        "store/lua/append.lua",
        "if tonumber(batch) ~= tonumber(record[4]) + 1 and not gives_back then",
        "if false then",
        (_LOG + "test_a_batch_that_skips_one_says_that_events_were_lost",),
    ),
    Mutant(
        "write a repeated batch again",
        "store/lua/append.lua",
        "if record[6] == nonce and record[4] == batch then",
        "if false then",
        (_LOG + "test_a_batch_that_is_sent_twice_is_written_once",),
    ),
    Mutant(
        "take reports without a number for each other's repeats",
        "store/lua/append.lua",
        "batch = record[8] == word and record[4] or int(tonumber(record[4]) + 1)",
        "batch = record[4]",
        (_LOG + "test_writers_that_do_not_count_write_beside_each_other",),
    ),
    Mutant(
        "forget what a job that is given up has left",
        "store/lua/judge.lua",
        "if redis.call('HGET', KEYS[1], 'leaves') then",
        "if false then",
        (_QUEUE + "test_a_job_that_kills_every_worker_is_given_up",),
    ),
    Mutant(
        "keep a step for as long as it may be needed",
        "store/lua/keep.lua",
        "redis.call('PEXPIRE', KEYS[i], ARGV[1])",
        "redis.call('PEXPIRE', KEYS[i], redis.call('PTTL', KEYS[i]))",
        (_STEPS + "test_a_steps_data_is_kept_as_long_as_its_parents_and_no_longer",),
    ),
    Mutant(
        "renew without checks",
        "store/lua/renew.lua",
        "if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] or record[3] ~= 'running' then",
        "if false then",
        (_QUEUE + "test_a_lost_lease_is_not_renewed",),
    ),
    # --- the log and its listeners
    Mutant(
        "publish before the log",
        "store/lua/append.lua",
        _FENCE,
        _PUBLISH_FIRST + _FENCE,
        (_FENCES + "test_a_refused_batch_reaches_no_listener",),
    ),
    Mutant(
        "publish without the log",
        "store/lua/lib_log.lua",
        "    redis.call('XADD', KEYS[2], id, 't', event[1], 'e', text)\n",
        "    if event[1] ~= 'log' then redis.call('XADD', KEYS[2], id, 't', event[1], 'e', text) end\n",
        (_LOG + "test_events_are_numbered_without_holes_and_say_what_they_are",),
    ),
    Mutant(
        "skip the re-read after a gap",
        "hub/subscription.py",
        "            if frame.number != self.number + 1:\n                self.fall_behind()\n                return\n",
        "",
        (_HUB + "test_dropped_live_messages_are_read_from_the_log",),
    ),
    Mutant(
        "subscribe after reading",
        "hub/subscription.py",
        """\
                await store.feed.follow(tail.job, self._source.follower)
                page = await store.events(tail.job, self.cursor)
""",
        """\
                page = await store.events(tail.job, self.cursor)
                await store.feed.follow(tail.job, self._source.follower)
""",
        (_HUB + "test_an_event_between_the_read_and_the_subscription_is_not_missed",),
    ),
    Mutant(
        "believe every cursor",
        "store/log.py",
        "        if entries[0].time_ms != after.time_ms:",
        "        if False:",
        (_LOG + "test_a_cursor_that_names_another_event_is_told_so",),
    ),
    Mutant(
        "trim without a fold",
        "store/lua/append.lua",
        "redis.call('XTRIM', KEYS[2], 'MINID', int(before) .. '-0')",
        "redis.call('XTRIM', KEYS[2], 'MINID', int(last) .. '-0')",
        (_LOG + "test_a_long_log_is_trimmed_to_the_last_fold_but_one",),
    ),
    Mutant(
        "end without a TTL",
        "store/lua/lib_log.lua",
        "    redis.call('PEXPIRE', KEYS[i], int(retention))\n",
        "",
        (_JOBS + "test_an_ended_job_keeps_no_key_without_a_ttl",),
    ),
    Mutant(
        "trim the proof of a snapshot's cursor",
        "store/lua/append.lua",
        "redis.call('XTRIM', KEYS[2], 'MINID', int(before) .. '-0')",
        "redis.call('XTRIM', KEYS[2], 'MINID', int(before + 1) .. '-0')",
        (_LOG + "test_a_long_log_is_trimmed_to_the_last_fold_but_one",),
    ),
    # --- submit
    Mutant(
        "reserve without a due entry",
        "store/lua/reserve.lua",
        "set_due(job, tonumber(ARGV[5]))",
        "",
        (_FENCES + "test_a_reservation_is_due_before_there_is_a_job",),
    ),
    Mutant(
        "create without the fingerprint",
        "store/lua/create.lua",
        "if there[1] ~= fingerprint then",
        "if false then",
        (_JOBS + "test_the_same_key_with_another_body_is_refused",),
    ),
    Mutant(
        "create without its nonce",
        "store/lua/create.lua",
        "there[2] == nonce and 'created' or 'replayed'",
        "'replayed'",
        (_FENCES + "test_a_create_that_is_sent_twice_is_not_called_a_replay",),
    ),
    Mutant(
        "queue a job that is in hand",
        "store/lua/enqueue.lua",
        "if redis.call('ZSCORE', KEYS[3], job) then",
        "if false then",
        (_FENCES + "test_a_replayed_submit_of_a_job_in_hand_queues_nothing",),
    ),
    # --- claim, begin, hold, leave
    Mutant(
        "claim from a paused kind",
        "store/lua/claim.lua",
        "if redis.call('HGET', KEYS[6], 'paused') ~= '1' then",
        "if true then",
        (_QUEUE + "test_a_paused_kind_is_not_claimed",),
    ),
    Mutant(
        "claim again when asked twice",
        "store/lua/claim.lua",
        "if before[1] == ARGV[1] then",
        "if false then",
        (_FENCES + "test_a_claim_that_is_sent_twice_takes_no_second_job",),
    ),
    Mutant(
        "begin a job that somebody has",
        "store/lua/begin.lua",
        "  return { 'held' }\n",
        "",
        (_FENCES + "test_a_second_pointer_to_a_running_job_begins_nothing",),
    ),
    Mutant(
        "begin again when asked twice",
        "store/lua/begin.lua",
        "  if record[2] == nonce then",
        "  if false then",
        (_FENCES + "test_a_begin_that_is_sent_twice_is_one_attempt",),
    ),
    Mutant(
        "drop the due entry before the end",
        "store/lua/settle.lua",
        "if where == 'drop' then",
        "if where == 'drop' or where == 'running' then",
        (_QUEUE + "test_a_dead_workers_job_is_taken_over_after_its_lease",),
    ),
    Mutant(
        "leave whatever attempt it is",
        "store/lua/leave.lua",
        "if not holder or tonumber(holder) > tonumber(ARGV[2]) then",
        "if not holder then",
        (_FENCES + "test_a_worker_that_leaves_late_does_not_free_anothers_place",),
    ),
    # --- look
    Mutant(
        "drop the look's token",
        "store/lua/settle.lua",
        "if not score or tonumber(score) ~= tonumber(ARGV[2]) then",
        "if not score then",
        (_FENCES + "test_a_look_that_was_overtaken_by_a_claim_moves_nothing",),
    ),
    Mutant(
        "take a job away under a lease",
        "store/lua/judge.lua",
        "  if lease_left > 0 then",
        "  if false then",
        (_QUEUE + "test_a_renewed_lease_is_not_taken_away",),
    ),
    Mutant(
        "count no failure",
        "store/lua/judge.lua",
        "  redis.call('HINCRBY', KEYS[1], 'failures', 1)\n",
        "",
        (_QUEUE + "test_a_dead_workers_job_is_taken_over_after_its_lease",),
    ),
    Mutant(
        "forget a wish to cancel",
        "store/lua/judge.lua",
        "if record[7] and lease_left <= 0 then",
        "if false then",
        (_QUEUE + "test_a_job_that_was_cancelled_while_its_worker_was_dead_ends_as_cancelled",),
    ),
    Mutant(
        "cancel under a listener",
        "store/lua/lib_listeners.lua",
        "tonumber(newest[2] or 0)",
        "0",
        (_LEAVING + "test_a_mark_counts_however_old_the_job_is",),
    ),
    Mutant(
        "let a parent go on beyond its kind's cap",
        "store/lua/rejoin.lua",
        "cap and there < 0 and",
        "false and",
        (_PARENTS + "test_a_parent_goes_on_when_its_kinds_cap_has_a_place_and_before_anything_new",),
    ),
    Mutant(
        "send away who waits to go on",
        "store/lua/settle.lua",
        "local in_line = ",
        "local in_line = false and ",
        (_PARENTS + "test_a_parent_goes_on_when_its_kinds_cap_has_a_place_and_before_anything_new",),
    ),
    Mutant(
        "let a late hold take a place",
        "store/lua/leave.lua",
        "  outdate(job)\n",
        "",
        (_FENCES + "test_a_hold_that_comes_late_takes_no_place",),
    ),
    Mutant(
        "let a late look take a place away",
        "store/lua/rejoin.lua",
        "outdate(job)\n",
        "",
        (_FENCES + "test_a_look_that_comes_late_leaves_a_place_as_it_is",),
    ),
    Mutant(
        "cancel what has ended",
        "store/lua/cancel.lua",
        "if TERMINAL[state] then",
        "if false then",
        (_FENCES + "test_a_cancel_after_the_end_changes_nothing",),
    ),
    Mutant(
        "let a cancel wait for an adoption",
        "store/lua/cancel.lua",
        "local freed = record[4] and 'freed'",
        "local freed = false",
        (_HANDOVER + "test_a_job_cancelled_on_its_way_ends_at_once_and_frees_its_place",),
    ),
    Mutant(
        "hand over what is to stop",
        "store/lua/renew.lua",
        "if record[4] then",
        "if false then",
        (_HANDOVER + "test_an_attempt_that_is_to_stop_is_not_handed_over",),
    ),
    Mutant(
        "end a job under whoever uses its token",
        "store/lua/renew.lua",
        "redis.call('HDEL', KEYS[1], 'handed')",
        "",
        (_HANDOVER + "test_whoever_uses_the_token_has_the_job_in_hand_and_is_told_of_a_cancel",),
    ),
    # --- what a token opens
    Mutant(
        "let a token do what only a key does",
        "auth.py",
        'principal.check(right, job=request.match_info.get("job"), kind=request.match_info.get("kind"))',
        "pass",
        (_TOKENS + "test_a_token_opens_no_route_to_what_is_not_its_own",),
    ),
    Mutant(
        "let a user read what another submitted",
        "auth.py",
        "return owner == self.owner or split_owner(owner)[0] == self.owner",
        "return split_owner(owner)[0] == split_owner(self.owner)[0]",
        (_TOKENS + "test_a_page_submits_and_goes_on_with_a_later_token_of_the_same_user",),
    ),
    Mutant(
        "give a user's page the owner's Idempotency-Keys",
        "tokens.py",
        'return f"{key}/{user}"',
        "return key",
        (_TOKENS + "test_a_users_idempotency_keys_find_no_jobs_but_the_users",),
    ),
    Mutant(
        "let a token open jobs of another kind",
        "handlers/context.py",
        'principal.check("read", kind=await _submitted_kind(store, found))',
        "await _submitted_kind(store, found)",
        (_TOKENS + "test_a_pipelines_steps_are_read_with_the_token_of_the_whole",),
    ),
    Mutant(
        "let a token for one job open others over a socket",
        "handlers/context.py",
        'principal.check("read", job=job)',
        "pass",
        (_TOKENS + "test_over_a_socket_a_token_opens_the_same",),
    ),
    Mutant(
        "take a token for ever",
        "auth.py",
        "if principal.expires is not None and time.time() >= principal.expires:",
        "if False:",
        (_TOKENS + "test_a_token_that_is_none_or_over_says_so",),
    ),
    Mutant(
        "leave a stream open when its token's time is over",
        "handlers/streams.py",
        "if expires is not None:",
        "if False:",
        (_TOKENS + "test_a_stream_ends_with_its_token_and_says_why",),
    ),
    Mutant(
        "give who has a token a watch URL without an end",
        "handlers/documents.py",
        "urls=job_urls(record, settings, until)",
        "urls=job_urls(record, settings, None)",
        (_TOKENS + "test_what_a_token_opens_it_opens_for_no_longer_than_it_lasts",),
    ),
)
