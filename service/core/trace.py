"""What a request that is traced remembers of its way: times and sizes, no content.

Strategy: a traced request carries a `Trace` from its transport to the batcher, and every other
request carries None. Both only append to it; nothing here knows OpenTelemetry. `observe.spans`
makes spans of it in a thread, after the request has ended.

Times are seconds of `time.monotonic`, which is the batcher's clock and the event loop's.
"""

from __future__ import annotations

import time
from random import getrandbits

# Steps that one trace remembers. A request of a million images has 16,000 runs.
MOST_STEPS = 64


class Batch:
    """One run of a model in which a traced request took part.

    `members` are the (trace id, span id) of the steps of traced requests; `requests` counts all.
    """

    __slots__ = (
        "error",
        "inferred",
        "is_sent",
        "joined",
        "members",
        "model",
        "requests",
        "rows",
        "span_id",
        "split",
        "start",
        "trace_id",
        "version",
    )

    def __init__(self, model: tuple[str, str], requests: int, rows: int, error: str) -> None:
        self.model, self.version = model
        self.requests = requests
        self.rows = rows
        self.error = error  # the class of what the model raised
        self.trace_id = new_id(128)
        self.span_id = new_id(64)
        self.members: list[tuple[int, int]] = []
        self.start = self.joined = self.inferred = self.split = 0.0
        self.is_sent = False

    def times(self, start: float, joined: float, inferred: float, split: float) -> None:
        """Set when it began, had its inputs joined, was done and had its outputs split."""
        self.start, self.joined, self.inferred, self.split = start, joined, inferred, split


class Trace:
    """One traced request, or one message of a traced stream.

    `parent_id` is the caller's span, or 0; `state` is the caller's tracestate. `began` is when the
    request arrived, `handled` when its body had. `steps` are, in order, the times at which rows
    entered a queue and the runs that took them. `code` is empty until the request has ended.
    """

    __slots__ = (
        "began",
        "code",
        "ended",
        "handled",
        "is_message",
        "left_out",
        "method",
        "parent_id",
        "request_id",
        "route",
        "span_id",
        "state",
        "steps",
        "trace_id",
        "wall_ns",
    )

    def __init__(self, trace_id: int, parent_id: int, state: str = "") -> None:
        self.trace_id = trace_id
        # The ids of the spans below it follow, and fit into 64 bits as well.
        self.span_id = new_id(63)
        self.parent_id = parent_id
        self.state = state
        self.is_message = False
        self.method = ""  # of HTTP; empty for gRPC
        self.route = ""
        self.request_id = ""
        self.wall_ns = time.time_ns()
        self.began = self.handled = time.monotonic()
        self.steps: list[float | Batch] = []
        self.left_out = 0
        self.ended = 0.0
        self.code = ""

    def handle(self, method: str, route: str, request_id: str) -> None:
        """Note that the request has arrived, and what it asks for: the route's own pattern."""
        self.method, self.route, self.request_id = method, route, request_id
        self.handled = time.monotonic()

    def add(self, step: float | Batch) -> None:
        """Note that rows entered a queue at this time, or that this run took some."""
        if self.code:  # ended before its run
            return
        if len(self.steps) == MOST_STEPS:
            self.left_out += 1
            return
        self.steps.append(step)
        if isinstance(step, Batch):
            step.members.append((self.trace_id, self.step_id(len(self.steps))))

    def step_id(self, number: int) -> int:
        """The id of the span of a step: ids have to differ within their trace only."""
        return self.span_id + number

    def message(self) -> Trace:
        """The trace of a message of this stream."""
        message = Trace(self.trace_id, self.span_id)
        message.is_message = True
        return message


def new_id(bits: int) -> int:
    """A random id, which is never 0."""
    return getrandbits(bits) or 1
