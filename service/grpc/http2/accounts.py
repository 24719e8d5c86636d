"""What the calls of one connection hold of the worker's budget of bytes (service/core/budget.py).

A message is counted as its bytes arrive. One that exceeds the window of its stream is claimed
before more of it may come, and what has arrived then moves to the claim. An answer is counted while
it waits for the peer's window.
"""

from __future__ import annotations

from collections.abc import Callable

from service.core.budget import Budget, Claim
from service.core.errors import InFlightLimit
from service.grpc.http2.stream import State, Stream


class Accounts:
    """Counts what streams hold; the figures are kept in the streams."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def count(self, stream: Stream, size: int) -> bool:
        """Count bytes that have arrived. Returns False if there is no room for them."""
        claim = stream.claim
        if claim is not None and claim.is_granted:
            claim.moved += size
            if claim.moved <= claim.size:
                return True
            size = claim.moved - claim.size  # of the next message
            claim.moved = claim.size
        budget = self._budget
        stream.counted += size
        budget.used += size
        # The first bytes of messages that wait for their claim leave an eighth to small calls.
        return budget.used <= (budget.limit if claim is None else budget.limit * 7 // 8)

    def refusal(self) -> InFlightLimit:
        """The error for bytes that have no room."""
        return self._budget.refusal("grpc")

    def claim(
        self,
        stream: Stream,
        granted: Callable[[], None],
        refused: Callable[[InFlightLimit], None],
    ) -> None:
        """Claim the bytes of the message that is arriving. `granted` may be called at once."""

        def move() -> None:
            assert stream.claim is not None
            stream.claim.moved = stream.arrived
            stream.counted -= stream.arrived
            self._budget.used -= stream.arrived
            granted()

        stream.claim = self._budget.claim(stream.next_size, "grpc", move, refused)
        if stream.claim.is_granted:
            move()

    def message_answered(self, stream: Stream) -> None:
        """Give back what the oldest message of a streaming call held."""
        if stream.holds:
            self._give_back(stream, stream.holds.popleft())

    def message_inflated(self, stream: Stream, claim: Claim) -> None:
        """Keep the claim of a message that was decompressed, in place of what it held before."""
        if stream.status is not None or stream.state == State.CLOSED:
            claim.close()
        elif stream.headers.is_unary:
            stream.holds.append(claim)
        else:
            self._give_back(stream, stream.replace_hold(claim))

    def release(self, stream: Stream) -> None:
        """Give back what the request of a call held."""
        self._budget.used -= stream.counted
        stream.counted = 0
        if stream.claim is not None:
            stream.claim.close()
            stream.claim = None
        if stream.holds:
            for hold in stream.holds:
                if not isinstance(hold, int):
                    hold.close()
            stream.holds.clear()

    def answer_waits(
        self, stream: Stream, must_fit: bool, refused: Callable[[InFlightLimit], None]
    ) -> InFlightLimit | None:
        """Count output that waits. Returns an error if it `must_fit`, but there is no room.

        `refused` may be called later, if the peer reads too slowly while others wait.
        """
        size = len(stream.output)
        if stream.answer is None or stream.answer.size != size:
            self.answer_sent(stream)
            budget = self._budget
            if must_fit and budget.used + size > budget.limit:
                return budget.refusal("grpc")
            stream.answer = budget.answer(size, "grpc", refused)
        stream.answer.moved = stream.sent
        return None

    def answer_sent(self, stream: Stream) -> None:
        """Nothing of the output of a call waits any longer."""
        if stream.answer is not None:
            stream.answer.close()
            stream.answer = None

    def _give_back(self, stream: Stream, hold: Claim | int) -> None:
        if isinstance(hold, int):
            stream.counted -= hold
            self._budget.used -= hold
        else:
            hold.close()
