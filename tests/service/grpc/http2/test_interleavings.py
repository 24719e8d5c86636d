"""A connection under random interleavings of calls, against a model of a client that obeys.

The client sends frames cut anywhere, and keeps its own account of every window from the frames that
it receives. The handler takes messages, answers and gives up whenever it likes, and time passes.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.budget import Budget
from service.grpc.http2 import connection as server_side
from service.grpc.http2 import frames
from service.grpc.http2.connection import CONNECTION_WINDOW
from service.grpc.http2.events import (
    CallCancelled,
    CallEnded,
    Event,
    MessageReceived,
    MessagesEnded,
    OutputDrained,
)
from service.grpc.http2.headers import OK, Status
from service.grpc.http2.limits import Limits
from service.grpc.http2.pool import Pool
from service.grpc.http2.stream import STREAM_WINDOW, State, Stream
from tests.service.grpc.http2.client import (
    STREAMING,
    UNARY,
    block,
    connection,
    data,
    goaway,
    headers,
    message,
    sent,
)

LIMIT = 300_000  # of the budget: two large messages do not fit at the same time
MAX_MESSAGE = 200_000
LIMITS = Limits(
    max_message=MAX_MESSAGE,
    max_streams=6,
    body_timeout=30.0,
    header_timeout=1e9,
    idle_timeout=1e9,
    keepalive_interval=0.0,
    max_age=0.0,
)
SIZES = st.sampled_from([0, 10, 5000, STREAM_WINDOW - 5, STREAM_WINDOW, 100_000, MAX_MESSAGE])
CALLS = st.integers(0, 5)


class Call:
    """A call as its client sees it."""

    def __init__(self, is_unary: bool, content: bytes, window: int) -> None:
        self.is_unary = is_unary
        self.unsent = content
        self.ended_own_side = False
        self.send_window = STREAM_WINDOW
        self.receive_window = window
        self.endings: list[str] = []  # how it ended; one is right
        # The handler's side.
        self.stream: Stream | None = None
        self.inbox: deque[MessageReceived] = deque()
        self.taken = 0  # messages that are read and not answered
        self.may_send = True


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(server_side, "_MOST_QUEUED", 20_000)  # less than an answer
        self.now = 0.0
        self.budget = Budget(LIMIT, clock=lambda: self.now)
        self.pool = Pool(4, max_calls=100, silence=1e9, budget=self.budget)
        self.server = connection(LIMITS, self.pool)
        self.calls: dict[int, Call] = {}
        self.next_id = 1
        self.send_window = CONNECTION_WINDOW
        self.receive_window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.on_the_way = b""
        self.is_slow = False  # bytes of the client wait on their way
        self.is_paused = False
        self.paused_at = 0.0

    # Bytes.

    def send(self, content: bytes) -> None:
        self.on_the_way += content
        if not self.is_slow:
            self.deliver(len(self.on_the_way))

    @rule()
    def become_slow_or_fast(self) -> None:
        self.is_slow = not self.is_slow

    @rule(count=st.sampled_from([1, 9, 20_000, 1_000_000]) | st.integers(1, 100))
    def deliver(self, count: int) -> None:
        if self.is_paused:  # the listener does not read then
            return
        content, self.on_the_way = self.on_the_way[:count], self.on_the_way[count:]
        self.handle(self.server.receive(content, self.now))

    def handle(self, events: list[Event]) -> None:
        for event in [*events, *self.server.events()]:
            call = self.calls[event.stream.id]
            call.stream = event.stream
            if isinstance(event, MessageReceived):
                call.inbox.append(event)
            elif isinstance(event, OutputDrained):
                call.may_send = True
            elif isinstance(event, CallCancelled | CallEnded):
                call.inbox.clear()
                call.taken = 0
            else:
                assert isinstance(event, MessagesEnded) or not call.is_unary
        self.read_output()

    def read_output(self) -> None:
        """Account for what the server sends."""
        output = self.server.data_to_send()
        assert goaway(output) is None
        for kind, flags, stream_id, payload in sent(output):
            call = self.calls.get(stream_id)
            if kind == frames.WINDOW_UPDATE:
                size = frames.read_word(payload)
                if call is None:
                    self.send_window += size
                    assert self.send_window <= CONNECTION_WINDOW
                else:
                    call.send_window += size
            elif kind == frames.DATA:
                assert call is not None
                assert call.endings in ([], ["given up"])  # the reset may be on its way
                call.receive_window -= len(payload)
                self.receive_window -= len(payload)
                assert call.receive_window >= 0
                assert self.receive_window >= 0
            elif kind == frames.RST_STREAM:
                assert call is not None
                if call.endings != ["answered"]:  # that one only stops the request
                    call.endings.append("reset by the server")
                call.unsent = b""
            elif kind == frames.HEADERS and flags & frames.END_STREAM:
                assert call is not None
                call.endings.append("answered")
        if self.server.has_more:
            self.handle(self.server.send_more())

    # The client.

    def open_calls(self) -> list[int]:
        return [number for number, call in self.calls.items() if not call.endings]

    def pick(self, choice: int) -> Call | None:
        numbers = self.open_calls()
        return self.calls[numbers[choice % len(numbers)]] if numbers else None

    @rule(is_unary=st.booleans(), sizes=st.lists(SIZES, min_size=1, max_size=4))
    def open(self, is_unary: bool, sizes: list[int]) -> None:
        sizes = sizes[:1] if is_unary else sizes
        content = b"".join(message(bytes(size)) for size in sizes)
        self.calls[self.next_id] = Call(is_unary, content, self.initial_window)
        self.send(headers(self.next_id, block(UNARY if is_unary else STREAMING)))
        self.next_id += 2

    @rule(choice=CALLS, size=st.sampled_from([0, 3, 5, 3000, 70_000, 1_000_000]), pad=st.booleans())
    def send_data(self, choice: int, size: int, pad: bool) -> None:
        call = self.pick(choice)
        if call is None or call.ended_own_side:
            return
        number = next(number for number, each in self.calls.items() if each is call)
        room = min(size, call.send_window, self.send_window)
        while room > 0 and call.unsent:
            part = min(room, frames.DEFAULT_FRAME)
            if pad and part > 20:
                content, call.unsent = call.unsent[: part - 11], call.unsent[part - 11 :]
                padded = bytes([10]) + content + bytes(10)
                self.send(frames.frame(frames.DATA, frames.PADDED, number, padded))
                part = len(padded)
            else:
                content, call.unsent = call.unsent[:part], call.unsent[part:]
                self.send(data(number, content))
                part = len(content)
            room -= part
            call.send_window -= part
            self.send_window -= part
        if not call.unsent:
            self.send(data(number, b"", end=True))
            call.ended_own_side = True

    @rule(choice=CALLS)
    def give_up(self, choice: int) -> None:
        call = self.pick(choice)
        if call is not None:
            number = next(number for number, each in self.calls.items() if each is call)
            call.endings.append("given up")
            self.send(frames.reset(number, frames.CANCEL))
            call.unsent = b""

    @rule(choice=CALLS, size=st.sampled_from([1, 3000, 100_000]), whole=st.booleans())
    def grant(self, choice: int, size: int, whole: bool) -> None:
        call = self.pick(choice)
        if whole or call is None:
            self.receive_window += size
            self.send(frames.window_update(0, size))
        else:
            call.receive_window += size
            number = next(number for number, each in self.calls.items() if each is call)
            self.send(frames.window_update(number, size))

    @precondition(lambda self: not self.on_the_way)
    @rule(size=st.sampled_from([0, 100, 65_535, 100_000]))
    def change_the_initial_window(self, size: int) -> None:
        """Delivered at once: what is on its way back was sent by the earlier window."""
        if self.is_paused:
            return
        for call in self.calls.values():
            call.receive_window += size - self.initial_window
        self.initial_window = size
        self.send(frames.settings({frames.INITIAL_WINDOW_SIZE: size}))
        for call in self.calls.values():
            if call.receive_window < 0:  # as RFC 9113, 6.9.2, allows; keep the account simple
                grown = -call.receive_window
                number = next(number for number, each in self.calls.items() if each is call)
                call.receive_window += grown
                if not call.endings:
                    self.send(frames.window_update(number, grown))
        self.deliver(len(self.on_the_way))

    @rule()
    def ping(self) -> None:
        self.send(frames.frame(frames.PING, 0, 0, b"12345678"))

    @rule()
    def say_goodbye(self) -> None:
        """A client's GOAWAY ends nothing: its calls are answered."""
        self.send(frames.goaway(0, frames.NO_ERROR, "bye"))

    @rule()
    def stop_or_start_reading(self) -> None:
        self.is_paused = not self.is_paused
        if self.is_paused:
            self.paused_at = self.now
            self.server.pause()
        else:
            self.handle(self.server.resume())

    # The handler.

    def pick_running(self, choice: int) -> tuple[Call, Stream] | None:
        running = [c for c in self.calls.values() if c.stream and c.stream.status is None]
        running = [c for c in running if c.stream and c.stream.state != State.CLOSED]
        if not running:
            return None
        call = running[choice % len(running)]
        assert call.stream is not None
        return call, call.stream

    @rule(choice=CALLS)
    def take(self, choice: int) -> None:
        picked = self.pick_running(choice)
        if picked and picked[0].inbox and not picked[0].is_unary:
            call, stream = picked
            call.inbox.popleft()
            call.taken += 1
            self.server.message_read(stream)
            self.handle([])

    @rule(choice=CALLS, size=st.sampled_from([0, 3000, 70_000]))
    def answer(self, choice: int, size: int) -> None:
        picked = self.pick_running(choice)
        if picked and picked[0].taken and picked[0].may_send:
            call, stream = picked
            call.taken -= 1
            self.server.message_answered(stream)
            call.may_send = self.server.send(stream, bytes(size))
            self.handle([])

    @rule(choice=CALLS, size=st.sampled_from([0, 3000, 70_000]), fails=st.booleans())
    def finish(self, choice: int, size: int, fails: bool) -> None:
        picked = self.pick_running(choice)
        if picked and picked[0].may_send:
            call, stream = picked
            if call.is_unary and not call.inbox:
                return
            status = Status("INTERNAL", "failed") if fails else OK
            content = bytes(size) if call.is_unary and not fails else None
            self.server.finish(stream, status, content)
            self.handle([])

    @rule(choice=CALLS)
    def expire(self, choice: int) -> None:
        picked = self.pick_running(choice)
        if picked:
            self.server.expire(picked[1], Status("DEADLINE_EXCEEDED", "late"))
            self.handle([])

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 12.0]))
    def let_time_pass(self, seconds: float) -> None:
        if self.is_paused and self.now + seconds - self.paused_at >= LIMITS.body_timeout:
            self.stop_or_start_reading()  # else the connection ends, as it should
        self.now += seconds
        self.budget.sweep()
        self.handle(self.server.tick(self.now))

    # What has to hold at any time.

    @invariant()
    def the_connection_lives(self) -> None:
        assert not self.server.closed

    @invariant()
    def every_call_ends_once(self) -> None:
        for call in self.calls.values():
            assert len(call.endings) <= 1 or call.endings[0] == "given up", call.endings

    @invariant()
    def held_bytes_are_those_of_the_calls(self) -> None:
        streams = self.server._streams.values()
        held = 0
        for stream in streams:
            claims = [stream.claim, stream.answer, *stream.holds]
            held += stream.counted
            held += sum(c.size for c in claims if c and not isinstance(c, int) and c.is_granted)
        answers = sum(stream.answer.size for stream in streams if stream.answer)
        assert self.budget.used == held
        assert self.budget.used - answers <= LIMIT
        assert self.pool.open_calls == len(streams)

    @invariant()
    def windows_are_what_the_client_thinks(self) -> None:
        if self.on_the_way:
            return
        assert self.server._receive_window == self.send_window
        assert self.send_window >= CONNECTION_WINDOW // 2  # no call takes it from the others
        for number, stream in self.server._streams.items():
            assert stream._receive_window == self.calls[number].send_window

    @invariant()
    def no_call_that_can_go_on_is_held_up(self) -> None:
        """A client waits for a window only if a message has to be read, or room to be found."""
        if self.on_the_way:
            return
        for number in self.open_calls():
            call, stream = self.calls[number], self.server._streams.get(number)
            if call.send_window > 0 or not call.unsent or stream is None or stream.status:
                continue
            waits_for_room = stream.claim is not None and not stream.claim.is_granted
            assert call.inbox or waits_for_room

    @invariant()
    def what_the_windows_allow_is_sent(self) -> None:
        if self.is_paused or self.server._send_window <= 0:
            return
        assert not any(stream.send_window > 0 for stream in self.server._waiting.values())

    def teardown(self) -> None:
        """Everything ends, and nothing is held any more."""
        self.patch.undo()
        if self.is_paused:
            self.stop_or_start_reading()
        self.deliver(len(self.on_the_way) + 1)
        for _ in range(4):
            self.receive_window += 10_000_000
            self.send(frames.window_update(0, 10_000_000))
            for number in self.open_calls():
                self.calls[number].receive_window += 10_000_000
                self.send(frames.window_update(number, 10_000_000))
            self.deliver(len(self.on_the_way))
            self.let_time_pass(31.0)  # patience, body_timeout
            while picked := self.pick_running(0):
                self.server.finish(picked[1], OK)
                self.handle([])
        for number in self.open_calls():
            self.calls[number].endings.append("given up")
            self.send(frames.reset(number, frames.CANCEL))
        self.deliver(len(self.on_the_way) + 1)
        assert self.server._streams == {}
        assert self.budget.used == 0
        assert self.budget._waiting == self.budget._moving == {}
        assert self.pool.open_calls == 0
        assert all(len(call.endings) >= 1 for call in self.calls.values())


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
