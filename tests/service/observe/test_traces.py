from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.trace import Trace
from service.observe.traces import Traces, parse

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-{flags}" for flags in ("01", "00"))
IDS = int(TRACE_ID, 16), int(PARENT_ID, 16)


def traces(share: float = 0.0, per_second: int = 100, **limits: int) -> Traces:
    return Traces(share=share, per_second=per_second, **limits)


@pytest.mark.parametrize(
    ("parent", "sampled"),
    [
        (SAMPLED, True),
        (UNSAMPLED, False),
        (f"00-{TRACE_ID}-{PARENT_ID}-ff", True),  # flags that do not exist yet
        (f"00-{TRACE_ID}-{PARENT_ID}-02", False),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01", True),  # a version that does not exist yet
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what the future will be like", True),
        (f" {SAMPLED}\t", True),
    ],
)
def test_a_callers_context_is_read(parent: str, sampled: bool) -> None:
    assert parse([parent]) == (*IDS, sampled)


# As the W3C's own test suite has them (trace-context/test).
@pytest.mark.parametrize(
    "parent",
    [
        "",
        SAMPLED + "-what",
        SAMPLED + "-",
        SAMPLED.upper(),
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"cc-{TRACE_ID}-{PARENT_ID}-01.what",
        f".0-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-.{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}0-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}0-01",
        f"00-{TRACE_ID}-{PARENT_ID}-1",
        f"00-{TRACE_ID}-{PARENT_ID}-.1",
        f"00-{TRACE_ID}-{PARENT_ID}-001",
        f"00-{TRACE_ID}-{PARENT_ID}",
        SAMPLED.replace("-", "_"),
        f"{SAMPLED},{SAMPLED}",
        SAMPLED.replace("0a", "\N{ARABIC-INDIC DIGIT ZERO}a"),
    ],
)
def test_a_malformed_context_counts_as_none(parent: str) -> None:
    assert parse([parent]) is None
    assert traces(share=0).begin([parent], ["a=b"]) is None
    trace = traces(share=1).begin([parent], ["a=b"])
    assert trace is not None
    assert (trace.parent_id, trace.state) == (0, "")
    assert trace.trace_id != IDS[0]


def test_several_contexts_count_as_none() -> None:
    assert parse([SAMPLED, SAMPLED]) is None
    assert parse([]) is None


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
def test_whatever_is_sent_is_read_or_ignored(parent: str) -> None:
    read = parse([parent])
    valid = re.fullmatch(r"\s*(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*", parent)
    if read is not None:
        assert valid
        assert 0 < read[0] < 2**128
        assert 0 < read[1] < 2**64


def test_a_sampled_caller_is_followed() -> None:
    trace = traces().begin([SAMPLED], ["a=1", "b=2"])
    assert trace is not None
    assert (trace.trace_id, trace.parent_id, trace.state) == (*IDS, "a=1,b=2")


def test_a_caller_that_is_not_sampled_is_followed_whatever_the_share() -> None:
    assert traces(share=1).begin([UNSAMPLED], []) is None


def test_without_a_caller_the_share_decides() -> None:
    assert traces(share=0).begin([], []) is None
    trace = traces(share=1).begin([], [])
    assert trace is not None
    assert trace.parent_id == 0
    half = traces(share=0.5)
    count = sum(half.begin([], []) is not None for _ in range(10_000))
    assert 4500 < count < 5500  # 10 standard deviations


def test_callers_cannot_ask_for_more_traces_than_the_limit() -> None:
    now = 0.0
    limited = Traces(share=0, per_second=10, clock=lambda: now)
    assert sum(limited.begin([SAMPLED], []) is not None for _ in range(1000)) == 10
    now = 0.5
    assert limited.begin([SAMPLED], []) is None
    now = 1.0
    assert sum(limited.begin([SAMPLED], []) is not None for _ in range(1000)) == 10


def test_beyond_the_limit_callers_have_the_share_of_others_and_keep_their_trace() -> None:
    trace = traces(share=1, per_second=0).begin([SAMPLED], [])
    assert trace is not None
    assert trace.trace_id == IDS[0]


def test_the_messages_of_a_stream_count_for_the_limit() -> None:
    limited = traces(per_second=3)
    stream = limited.begin([SAMPLED], [])
    assert stream is not None
    assert sum(limited.message(stream) is not None for _ in range(10)) == 2


def test_a_long_tracestate_takes_no_memory() -> None:
    trace = traces().begin([SAMPLED], ["a=" + "x" * 100_000])
    assert trace is not None
    assert len(trace.state) < 1000


def test_a_full_queue_drops_and_counts() -> None:
    full = traces(most_ended=2, batch=2)
    for number in range(5):
        assert full.is_due.is_set() == (number >= 2)
        full.end(Trace(1, 0), "200")
    assert [trace.code for trace in full.ended] == ["200", "200"]
    assert full.lost == 3
