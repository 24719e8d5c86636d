"""When a failed attempt is repeated: pure, with the clock passed in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from mnist_client.errors import ClientError, DeadlineExceeded

LONGEST_S = 1_000_000  # eleven days; sockets take no infinite timeouts


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `attempts` per call, the first included.

    The wait before the second is `first_wait` seconds and doubles up to `longest_wait`; each is
    shortened at random by up to a half, so that clients do not come back together. A server that
    says when to come back is waited for at least so long.
    """

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.longest_wait < 0:
            raise ValueError("Retries: attempts is at least 1, and the waits are not negative.")


class Attempts:
    """The attempts of one call, until `timeout` seconds from now."""

    def __init__(
        self,
        retries: Retries,
        timeout: float,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not 0 < timeout <= LONGEST_S:
            raise ValueError(
                f"timeout: is {timeout}; it must be more than 0 seconds, and at most {LONGEST_S}."
            )
        self._retries = retries
        self._timeout = timeout
        self._clock = clock
        self._draw = draw
        self._end = clock() + timeout
        self._done = 0

    def remaining(self) -> float:
        """Seconds that the next attempt may take. Raises DeadlineExceeded if there are none."""
        left = self._end - self._clock()
        if left <= 0:
            raise DeadlineExceeded(f"The timeout of {self._timeout:g} s passed before the answer.")
        return left

    def wait_after(self, error: ClientError) -> float:
        """Seconds to wait after a failed attempt; raises the error if another cannot help.

        It cannot if the error would repeat, after the last attempt, or if the wait would end past
        the deadline.
        """
        self._done += 1
        if not error.retryable or self._done >= self._retries.attempts:
            raise error
        doublings = min(self._done - 1, 99)  # a float has room for 1023
        wait = min(self._retries.longest_wait, self._retries.first_wait * 2.0**doublings)
        wait *= 1 - self._draw() / 2
        if error.retry_after is not None:
            # Those that were refused together do not come back in the same instant.
            wait = error.retry_after * (1 + self._draw() / 10)
        if self._clock() + wait >= self._end:
            raise error
        return wait
