"""How often a peer may do what costs it nothing."""

from __future__ import annotations


class Allowance:
    """`burst` times at once and as often per second; `debt` is how many more until the end."""

    __slots__ = ("_burst", "_debt", "_used_at", "left")

    def __init__(self, burst: int, debt: int = 0) -> None:
        self.left = float(burst)
        self._burst = burst
        self._debt = debt
        self._used_at = 0.0

    def use(self, now: float) -> bool:
        """Whether it may happen once more."""
        self.left = min(self.left + (now - self._used_at) * self._burst, self._burst) - 1
        self._used_at = now
        return self.left >= 0

    @property
    def is_overdrawn(self) -> bool:
        return self.left < -self._debt
