"""The bytes of requests and answers that one worker holds at a time, over all transports.

How it works. A short message that has arrived is only counted, and its transport subtracts its size
from `used` when it is answered. Everything else makes a `Claim` before it is read.

A claim reserves its whole size, so that a body which has begun can always be finished: no two of
them wait for each other. A claim that does not fit waits in the order of arrival, and its transport
stops reading. It is granted when others are closed, or refused after `patience` seconds. Claims of
up to SMALL bytes do not wait behind larger ones: larger ones get three quarters of the limit, all
claims together seven eighths, and messages that are only counted the whole.

A reservation costs its client nothing, so it has to be used. While others wait, a claim whose bytes
move more slowly than SLOWEST is refused in their favour, the slowest first; so are answers that a
client does not read. While there is room, slow clients are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from operator import itemgetter

from service.core.errors import InFlightLimit

# Claims of up to this many bytes do not wait behind larger ones.
SMALL = 64 * 1024
# Twice the headers of a request with a token and cookies.
_USUAL_HEADERS = 16 * 1024
# The slowest that a claim may move while others wait, in bytes per second, after GRACE_S seconds.
SLOWEST = 1024 * 1024
GRACE_S = 1.0
# Seconds that a claim may wait.
PATIENCE_S = 5.0
# Seconds between two calls of `Budget.sweep`.
SWEEP_S = 0.25


class Claim:
    """The bytes of a message that arrives, or of an answer that leaves. `Budget` makes it.

    Its owner adds to `moved` what has arrived or left, calls `complete` when all of a message has
    arrived, and `close` when the bytes are no longer held.
    """

    __slots__ = (
        "_budget",
        "_granted",
        "_measure",
        "_refused",
        "is_answer",
        "is_granted",
        "moved",
        "since",
        "size",
        "transport",
    )

    def __init__(
        self,
        budget: Budget,
        size: int,
        transport: str,
        granted: Callable[[], None],
        refused: Callable[[InFlightLimit], None],
        is_answer: bool,
    ) -> None:
        self._budget = budget
        self._granted = granted
        self._refused = refused
        self.size = size
        self.transport = transport
        self.is_answer = is_answer
        self.is_granted = False
        self._measure: Callable[[], int] | None = None  # how much has moved
        self.since = 0.0  # when it was made; once it is granted, when that was
        self.moved = 0

    def complete(self, size: int | None = None) -> None:
        """The whole message has arrived; `size` is its size if that was not known."""
        self._budget._complete(self, self.size if size is None else size)

    def close(self) -> None:
        """Give the bytes back. Closing twice changes nothing."""
        self._budget._close(self)


class Budget:
    """Counts the bytes of one worker. Belongs to one event loop.

    `used` is the bytes that are counted or granted. They exceed `limit` only by a claim that is
    larger than its share and the only one, and by headers and answers, which exist before they are
    counted.
    `clock` returns seconds; `count_refusal` is told the transport of each refusal.
    """

    def __init__(
        self,
        limit: int,
        *,
        patience: float = PATIENCE_S,
        count_refusal: Callable[[str], None] = lambda transport: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.used = 0
        self.answers = 0  # bytes of `used` that are of answers
        self.answer_closed: Callable[[], None] = lambda: None  # called after each
        self._patience = patience
        self._count_refusal = count_refusal
        self._clock = clock
        self._claimed = 0  # bytes of `used` that are of claims
        self._headers = 0  # and of headers
        # Granted claims whose bytes are moving, and claims that wait, both in their order.
        self._moving: dict[Claim, None] = {}
        self._waiting: dict[Claim, None] = {}
        self._is_short = False  # since the last sweep, something had no room that does not wait
        self._swept_at = clock()

    @property
    def in_flight(self) -> int:
        """Bytes that requests and answers hold now: `used` without what has not arrived yet."""
        self._measure_moving()
        return self.used - sum(
            claim.moved if claim.is_answer else claim.size - claim.moved for claim in self._moving
        )

    def add_headers(self, size: int) -> bool:
        """Count the headers of a request; False if there is no room for them.

        They have a quarter of the budget, so requests that do not end leave room for the bodies of
        others. Large ones leave half of it to those of usual size.
        """
        share = self.limit // (8 if size > _USUAL_HEADERS else 4)
        if self._headers and self._headers + size > share:
            return False
        self._headers += size
        self.used += size
        return True

    def drop_headers(self, size: int) -> None:
        """Count the headers of a request no longer."""
        self._headers -= size
        self.used -= size

    def count(self, size: int, transport: str) -> None:
        """Count a short message that has arrived. Raises InFlightLimit."""
        self.used += size
        if size and self.used > self.limit:
            self.used -= size
            raise self.refusal(transport)

    def refusal(self, transport: str) -> InFlightLimit:
        """The error for a counted message that does not fit."""
        self._is_short = True
        self._count_refusal(transport)
        return InFlightLimit.full(self.limit)

    def claim(
        self,
        size: int,
        transport: str,
        granted: Callable[[], None],
        refused: Callable[[InFlightLimit], None],
    ) -> Claim:
        """Claim the bytes of a message; `size` is the largest that it can have.

        Unless `is_granted` is true at once, `granted` or `refused` is called later. `refused` may
        also follow `granted`, until the message is complete. The owner still has to close a claim
        that was refused.
        """
        claim = Claim(self, size, transport, granted, refused, is_answer=False)
        claim.since = self._clock()
        if self._fits(size) and (size <= SMALL or not self._waiting):
            self._grant(claim)
        else:
            self._waiting[claim] = None
        return claim

    async def room(
        self, size: int, transport: str, too_slow: Callable[[InFlightLimit], None] | None = None
    ) -> Claim:
        """A claim of `size` bytes, once it is granted. Raises InFlightLimit if it is not.

        `too_slow` is called if the message arrives too slowly; without it, the claim is complete.
        """
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def granted() -> None:
            if not outcome.done():
                outcome.set_result(None)

        def refused(error: InFlightLimit) -> None:
            if claim.is_granted and too_slow is not None:
                too_slow(error)
            elif not outcome.done():
                outcome.set_exception(error)

        claim = self.claim(size, transport, granted, refused)
        if not claim.is_granted:
            try:
                await outcome
            except BaseException:
                claim.close()
                raise
        if too_slow is None:
            claim.complete()
        return claim

    def answer(
        self,
        size: int,
        transport: str,
        refused: Callable[[InFlightLimit], None],
        measure: Callable[[], int] | None = None,
    ) -> Claim:
        """Claim the bytes of an answer. It is granted at once, since the answer exists already.

        `refused` is called if the client reads too slowly while others wait. `measure` returns how
        much has left, where the owner does not keep `moved` up to date.
        """
        claim = Claim(self, size, transport, lambda: None, refused, is_answer=True)
        claim._measure = measure
        self._grant(claim)
        self.answers += size
        return claim

    def run_short(self) -> None:
        """Something that does not wait here needs the room of answers that wait."""
        self._is_short = True

    def sweep(self) -> None:
        """Grant what fits, and refuse claims that have waited too long or that hold up others.

        Counted messages are subtracted from `used` without a word, so the room that they leave
        becomes known here.
        """
        now = self._clock()
        silence, self._swept_at = now - self._swept_at, now
        if silence > 2 * SWEEP_S:
            # The event loop was held up, so nothing could move.
            for claim in self._moving:
                claim.since += silence
        if self._waiting:
            self._grant_waiting()
        for claim in [each for each in self._waiting if now - each.since >= self._patience]:
            if claim not in self._waiting:
                continue
            self._refuse(claim, InFlightLimit.full(self.limit))
            # Its owner counts its first bytes no longer: that may be enough for the next one.
            if self._waiting and self._fits(next(iter(self._waiting)).size):
                self._grant_waiting()
        is_short, self._is_short = self._is_short, False
        if (self._waiting or is_short) and self._moving:
            self._refuse_slow(now)

    def _refuse_slow(self, now: float) -> None:
        """Refuse the slowest claims: as many as make room for what waits, if any is too slow."""
        needed = sum([claim.size for claim in self._waiting]) or self.used - self.limit
        self._measure_moving()
        slow = sorted(
            [(lead, claim) for claim in self._moving if (lead := _lead(claim, now)) < 0],
            key=itemgetter(0),
        )
        for _, claim in slow:
            if claim in self._moving:  # the end of another one may have ended it
                needed -= claim.size
                self._refuse(claim, InFlightLimit.slow())
            if needed <= 0:
                break

    def _measure_moving(self) -> None:
        for claim in self._moving:
            if claim._measure is not None:
                claim.moved = claim._measure()

    def _fits(self, size: int) -> bool:
        eighths = 7 if size <= SMALL else 6
        share = self.limit * eighths // 8
        if size > share:
            return not self._claimed
        return self._claimed + size <= share and self.used + size <= self.limit

    def _grant(self, claim: Claim) -> None:
        self.used += claim.size
        self._claimed += claim.size
        self._moving[claim] = None
        claim.is_granted = True
        claim.since = self._clock()

    def _grant_waiting(self) -> None:
        """Grant what fits now: small claims, and larger ones up to the first that does not fit."""
        holds_up_large = False
        for claim in list(self._waiting):
            if claim not in self._waiting or (holds_up_large and claim.size > SMALL):
                continue
            if self._fits(claim.size):
                del self._waiting[claim]
                self._grant(claim)
                claim._granted()
            elif claim.size > SMALL:
                holds_up_large = True

    def _resize(self, claim: Claim, size: int) -> None:
        self.used += size - claim.size
        self._claimed += size - claim.size
        claim.size = size
        if self._waiting:
            self._grant_waiting()

    def _refuse(self, claim: Claim, error: InFlightLimit) -> None:
        self._count_refusal(claim.transport)
        if claim.is_granted:
            del self._moving[claim]
        else:
            del self._waiting[claim]
        claim._refused(error)
        # What never arrived is free at once, the rest when the owner closes the claim.
        if claim.is_granted and not claim.is_answer:
            self._resize(claim, min(claim.size, claim.moved))

    def _complete(self, claim: Claim, size: int) -> None:
        if claim.is_granted:
            self._moving.pop(claim, None)
            claim.moved = size
            self._resize(claim, size)

    def _close(self, claim: Claim) -> None:
        self._waiting.pop(claim, None)
        if claim.is_granted:
            self._moving.pop(claim, None)
            if claim.is_answer:
                self.answers -= claim.size
            self._resize(claim, 0)
            claim.is_granted = False
            if claim.is_answer:
                self.answer_closed()


def _lead(claim: Claim, now: float) -> float:
    """Bytes that a claim has moved beyond those that it must have; negative if it is too slow."""
    return claim.moved - SLOWEST * max(0.0, now - claim.since - GRACE_S)
