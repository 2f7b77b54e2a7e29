"""The SSE encoder and decoder, against the golden files and against each other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import Cursor
from gateway.sse import MAX_MESSAGE_CHARS, Decoder, Message, comment, encode_event, id_only, retry
from tests.golden import golden, named

DECODE = golden("sse_decode")["cases"]
ENCODE = golden("sse_encode")


def stream_of(case: dict[str, Any]) -> bytes:
    """The bytes of a decoding case."""
    return bytes.fromhex(case["hex"]) if "hex" in case else case["stream"].encode()


def assert_decodes(case: dict[str, Any], pieces: list[bytes]) -> None:
    """The pieces, fed one by one, must yield what the case says."""
    decoder = Decoder(case.get("before", ""))

    messages = [message for piece in pieces for message in decoder.feed(piece)]

    assert messages == [Message(**message) for message in case["messages"]]
    assert decoder.last_event_id == case["last_event_id"]
    assert decoder.retry_ms == case["retry_ms"]


@pytest.mark.parametrize("case", named(DECODE))
def test_a_golden_stream_decodes_as_a_whole(case: dict[str, Any]) -> None:
    """Every rule of the standard has a case in the golden file."""
    assert_decodes(case, [stream_of(case)])


@pytest.mark.parametrize("case", named(DECODE))
def test_a_golden_stream_decodes_the_same_cut_at_every_byte(case: dict[str, Any]) -> None:
    """A network cuts where it likes: inside a line end, a character or the byte order mark."""
    stream = stream_of(case)

    for at in range(len(stream) + 1):
        assert_decodes(case, [stream[:at], stream[at:]])
    assert_decodes(case, [stream[at : at + 1] for at in range(len(stream))])


@pytest.mark.parametrize("case", named([case for case in DECODE if "stream" in case]))
def test_text_decodes_like_bytes(case: dict[str, Any]) -> None:
    """A source that has decoded UTF-8 already may feed text, a character at a time."""
    decoder = Decoder(case.get("before", ""))

    messages = [message for character in case["stream"] for message in decoder.feed(character)]

    assert messages == [Message(**message) for message in case["messages"]]


LINES = st.lists(
    st.one_of(
        st.sampled_from(["data", "data:", "data: a", "id: 1-2", "id", "event: x", "retry: 5", ":", "", "", "\ufeff"]),
        st.text("da:ti \0x\u00fc\u2028\U0001f600", max_size=8),
    ),
    max_size=12,
)


@given(lines=LINES, data=st.data())
def test_any_chunking_gives_the_same_messages(lines: list[str], data: st.DataObject) -> None:
    """What comes out depends on the bytes, never on how they were cut."""
    ends = data.draw(st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=len(lines), max_size=len(lines)))
    stream = "".join(line + end for line, end in zip(lines, ends, strict=True)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    whole, pieces = Decoder(), Decoder()

    expected = whole.feed(stream)
    found = [
        message
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for message in pieces.feed(stream[start:end])
    ]

    assert found == expected
    assert (pieces.last_event_id, pieces.retry_ms) == (whole.last_event_id, whole.retry_ms)
    assert pieces.comments == whole.comments


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=5),
    name=st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))),
    number=st.integers(0, 10**15 - 1),
    time_ms=st.one_of(st.none(), st.integers(0, 10**15 - 1)),
)
def test_what_is_encoded_is_decoded(texts: list[str], name: str | None, number: int, time_ms: int | None) -> None:
    """Line ends in a text come back as LF; everything else comes back as it was."""
    cursor = Cursor(number, time_ms)
    stream = b"".join(encode_event(text.encode(), cursor, name) for text in texts)

    messages = Decoder().feed(stream)

    expected = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert messages == [Message(name or "message", text, str(cursor)) for text in expected]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_injects_a_field(text: str) -> None:
    """Whatever a processor's text holds, a block stays one message with its own id and name."""
    [message] = Decoder().feed(encode_event(text.encode(), Cursor(1), "x"))

    assert (message.event, message.id) == ("x", "1")


@pytest.mark.parametrize("case", named(ENCODE["events"]))
def test_an_event_is_encoded_as_the_golden_file_says(case: dict[str, Any]) -> None:
    """The bytes are part of the protocol: other gateways' clients read them too."""
    cursor = None if case["cursor"] is None else Cursor.parse(case["cursor"])

    assert encode_event(case["text"].encode(), cursor, case["event"]) == case["block"].encode()


def test_other_blocks_are_encoded_as_the_golden_file_says() -> None:
    """Blocks with only an id, comments and retry advice."""
    for case in ENCODE["id_only"]:
        assert id_only(Cursor.parse(case["cursor"])) == case["block"].encode()
    for case in ENCODE["comments"]:
        assert comment(case["text"]) == case["block"].encode()
    for case in ENCODE["retries"]:
        assert retry(case["milliseconds"]) == case["block"].encode()


def test_what_could_inject_a_field_is_refused() -> None:
    """A line break or NUL in a name or a comment would end the field."""
    for name in ENCODE["refused_names"]:
        with pytest.raises(ValueError, match="line break or NUL"):
            encode_event(b"{}", Cursor(1), name)
    for text in ENCODE["refused_comments"]:
        with pytest.raises(ValueError, match="line break or NUL"):
            comment(text)
    for milliseconds in ENCODE["refused_retries"]:
        with pytest.raises(ValueError, match="past"):
            retry(milliseconds)


def test_comments_are_counted_as_signs_of_life() -> None:
    """A heartbeat yields no message, and still shows that the connection lives."""
    decoder = Decoder()

    assert decoder.feed(b": ok\n\n:\n\ndata: a\n\n:\n\n") == [Message("message", "a", "")]
    assert decoder.comments == 3


def test_a_message_without_end_is_refused() -> None:
    """A server that never ends its line or its message must not fill the client's memory."""
    piece = b"x" * (1 << 20)

    for endless in (piece, b"data: " + piece + b"\n"):
        decoder = Decoder()
        for _ in range(MAX_MESSAGE_CHARS // len(piece)):
            decoder.feed(endless)
        with pytest.raises(ValueError, match="no stream of ours"):
            decoder.feed(endless)


def test_a_large_message_in_small_pieces_passes() -> None:
    """A snapshot of some MiB is legal, and its pieces are counted once."""
    text = b"y" * (MAX_MESSAGE_CHARS // 2 + 1000)
    stream = encode_event(text) * 2
    decoder = Decoder()

    messages = [m for at in range(0, len(stream), 1 << 20) for m in decoder.feed(stream[at : at + (1 << 20)])]

    assert [len(message.data) for message in messages] == [len(text)] * 2


def test_endless_retry_digits_are_bounded() -> None:
    """A number of any length is read in constant time, and means a long time."""
    decoder = Decoder()

    decoder.feed(b"retry: " + b"9" * 100_000 + b"\n\n")

    assert decoder.retry_ms == 10**9
