"""How many requests and images per second each caller may send.

Strategy: a caller has a token bucket for requests and one for images (service/core/callers.py says
what a caller is; with a key, it is the key). A bucket holds `burst` tokens and fills at `rate` per
second, so in any window of t seconds a caller gets at most burst + rate * t. All that is kept of a
bucket is when it will be full again: taking tokens moves that time on, and it may not be more than
a whole bucket away (the generic cell rate algorithm, ITU-T I.371). A bucket that is full needs no
entry.

The settings are for the server. Each worker enforces its share, the settings divided by the number
of workers, without asking the others: together they never let through more. The kernel spreads
connections over workers, so a caller with fewer connections than workers gets less, at worst the
share of one worker. A share is at least one request and one image: where a burst is smaller than
the number of workers, they let through one each (`small_bursts`).

Memory is bounded by the number of buckets. A new caller takes the place of the one with the fullest
bucket among the `_LOOKED_AT` that were used least recently: it loses next to nothing. A flood of
addresses thus pushes out its own buckets, which miss one token each. An empty bucket stays.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic

from service.core.errors import RequestTooLarge, TooManyRequests
from service.settings import Settings

# Buckets of each kind, about 3 MB in all.
_MAX_CALLERS = 16_384
_LOOKED_AT = 8
_ROUNDING_S = 1e-9


class Buckets:
    """The token buckets of all callers, for one kind of token. Times in seconds, of any clock."""

    def __init__(self, rate: float, burst: float, max_callers: int = _MAX_CALLERS) -> None:
        self._seconds_per_token = 1 / rate
        self._depth_s = burst / rate
        self._max_callers = max_callers
        # When the bucket of each caller is full again; the least recently used first.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str, tokens: int, now: float) -> float:
        """Take tokens, all or none. Returns 0, or after how many seconds there will be enough.

        For more tokens than a bucket holds, that is not true; the caller of this checks it.
        """
        full_at = self._full_at.get(caller)
        if full_at is None:
            full_at = now
            if len(self._full_at) >= self._max_callers:
                self._make_room()
        else:
            self._full_at.move_to_end(caller)
        later = max(full_at, now) + tokens * self._seconds_per_token
        wait = later - now - self._depth_s
        if wait > _ROUNDING_S:
            return wait
        self._full_at[caller] = later
        return 0.0

    def _make_room(self) -> None:
        """Forget the fullest of the buckets that were used least recently."""
        oldest = list(islice(self._full_at, _LOOKED_AT))
        fullest = min(oldest, key=self._full_at.__getitem__)
        for caller in oldest:
            self._full_at.move_to_end(caller)
        del self._full_at[fullest]


class Limits:
    """The limits of one worker. `clock` returns seconds; `count` is called for each refusal."""

    def __init__(
        self,
        settings: Settings,
        count: Callable[[str], None] = lambda limit: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._count = count
        self._clock = clock
        workers = self._workers = settings.workers
        self._rates = settings.max_requests_per_second, settings.max_images_per_second
        self._requests = self._images = None
        if rate := settings.max_requests_per_second:
            burst = (settings.request_burst or rate) / workers
            self._requests = Buckets(rate / workers, max(1.0, burst))
        if rate := settings.max_images_per_second:
            burst = (settings.image_burst or rate) / workers
            self._most_images = max(1, math.floor(burst))
            self._images = Buckets(rate / workers, max(1.0, burst))

    def request(self, caller: str) -> None:
        """Count a request. Raises TooManyRequests."""
        if self._requests is None:
            return
        if wait := self._requests.take(caller, 1, self._clock()):
            self._count("requests")
            raise TooManyRequests.of(
                f"Each caller may send {self._rates[0]:g} requests per second "
                "(max_requests_per_second)",
                wait,
            )

    def images(self, caller: str, number: int) -> None:
        """Count the images of a request. Raises TooManyRequests.

        Raises RequestTooLarge for more than a caller may ever send at once.
        """
        if self._images is None:
            return
        if number > self._most_images:
            shared = f", shared by {self._workers} workers" if self._workers > 1 else ""
            raise RequestTooLarge(
                f"The request has {number} images, but a caller may send {self._most_images} at "
                f"once (image_burst{shared}); split it."
            )
        if wait := self._images.take(caller, number, self._clock()):
            self._count("images")
            raise TooManyRequests.of(
                f"Each caller may send {self._rates[1]:g} images per second "
                "(max_images_per_second)",
                wait,
            )


def small_bursts(settings: Settings) -> Iterator[str]:
    """A sentence on each burst that is larger than the settings say."""
    for what, rate_name, burst_name in (
        ("requests", "max_requests_per_second", "request_burst"),
        ("images", "max_images_per_second", "image_burst"),
    ):
        rate, burst = getattr(settings, rate_name), getattr(settings, burst_name)
        asked, name = (burst, burst_name) if burst else (rate, rate_name)
        if rate and asked < settings.workers:
            yield (
                f"Each of {settings.workers} workers lets one of a caller's {what} through at "
                f"once, together more than the {asked:g} of {name}; use fewer workers, or raise "
                f"{name}."
            )


def limits_of(
    settings: Settings, count: Callable[[str], None] = lambda limit: None
) -> Limits | None:
    """The limits that the settings ask for; None if there are none."""
    if settings.max_requests_per_second or settings.max_images_per_second:
        return Limits(settings, count)
    return None
