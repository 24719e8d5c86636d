"""Whether a request may join the queue of a model, by the time it would wait there.

Strategy: the queue is bounded by time. How long a request would wait follows from the rows ahead of
it and from the time between runs, as measured on the latest real ones. A burst may use the whole
bound. A queue that lasts delays every request and gains nothing. So once it was never empty for
`_STANDING_S` and is at the bound, or has more than `_CALLERS` requests and did not shrink, it is
kept short: only as much may wait as keeps the model busy, until nothing was refused for
`_STRICT_S`. Clients that wait for their answers before they send again, and are no more than
`_CALLERS`, are thus never refused for the queue that they make themselves, unless it exceeds the
bound.

Source: the idea of a standing queue is from CoDel (Nichols and Jacobson, ACM Queue 10(5), 2012).
"""

from __future__ import annotations

from collections import deque

_STANDING_S = 0.1
_STRICT_S = 1.0
# After this long, and each time twice as long, the whole bound is tried again. Otherwise clients
# that send again at once after a refusal keep the queue short, although there is room for them.
_PATIENCE_S, _MOST_PATIENCE_S = 10.0, 160.0
_CALLERS = 256
_FLOOR_S = 0.005  # what may wait in a standing queue, however fast the model is
_RUNS = 1  # the same in runs
_SAMPLES = 9  # the median counts, so 4 odd runs in a row change nothing
_SIZES = 64  # classes of batch sizes: powers of two


class Admission:
    """The bound on the wait for one model. Times in seconds, by the clock of the batcher.

    `batch_rows` is the size of a full batch in rows; 1 for a model that runs whole requests.
    """

    def __init__(self, max_seconds: float, batch_rows: int) -> None:
        self._max_seconds = max_seconds
        self.batch_rows = batch_rows
        # Seconds of the latest runs, by the bit length of their rows. While requests wait, a run
        # lasts until the next one begins: the rest of the server takes time too.
        self.latest: list[deque[float]] = [deque(maxlen=_SAMPLES) for _ in range(_SIZES)]
        self.is_running = False
        self.began = 0.0  # the latest run
        self._estimate, self._estimated_at = 0.0, -1.0  # `run_seconds` as of the start of that run
        self._strict_since = self._strict_until = 0.0
        self._patience_s = _PATIENCE_S
        # Since when every run left requests waiting, and how many at first; None if none does.
        self.standing_since: float | None = None
        self.standing_requests = 0

    def run_seconds(self, rows: int = 0) -> float:
        """Seconds of a run of this many rows, by default of a full batch; 0 if none is known.

        A size that was not seen takes as long as the next smaller one that was: an estimate that is
        too low is corrected by the runs that follow.
        """
        if not rows:
            if self._estimated_at != self.began:
                self._estimated_at = self.began
                self._estimate = self.run_seconds(self.batch_rows)
            return self._estimate
        size = rows.bit_length()
        for latest in (*reversed(self.latest[: size + 1]), *self.latest[size + 1 :]):
            if latest:
                return sorted(latest)[(len(latest) - 1) // 2]
        return 0.0

    def wait(self, now: float, ahead: int) -> float:
        """Seconds until a request starts with this much ahead of it."""
        seconds = self.run_seconds()
        rest = max(0.0, seconds - (now - self.began)) if self.is_running else 0.0
        return rest + ahead // self.batch_rows * seconds

    def bound(self, now: float, requests: int) -> float:
        """Seconds that a request may wait now, with this many requests in the queue."""
        is_too_long = requests > max(_CALLERS, self.standing_requests) and self._is_standing(now)
        return self.strict_bound if is_too_long or self.is_strict(now) else self._max_seconds

    @property
    def strict_bound(self) -> float:
        """Seconds that a request may wait in a queue that is kept short."""
        return min(self._max_seconds, max(_FLOOR_S, _RUNS * self.run_seconds()))

    def refused(self, now: float) -> bool:
        """Learn that a request was refused; returns whether the queue is kept short from now on."""
        if self.is_strict(now):
            if now - self._strict_since < self._patience_s:
                self._strict_until = now + _STRICT_S
                return False
            self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
            self._strict_until = now
            self.standing_since = None
        elif self._is_standing(now):
            if now - self._strict_until > self._patience_s:
                self._patience_s = _PATIENCE_S
            self._strict_since, self._strict_until = now, now + _STRICT_S
            return True
        return False

    def is_strict(self, now: float) -> bool:
        """Whether the queue is kept short."""
        return now < self._strict_until

    def _standing_s(self) -> float:
        return max(_STANDING_S, 2 * self.run_seconds())

    def _is_standing(self, now: float) -> bool:
        since = self.standing_since
        return since is not None and now - since >= self._standing_s()
