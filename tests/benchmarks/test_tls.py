"""How the cost of TLS is worked out, with servers whose clock does not depend on the machine."""

from __future__ import annotations

from typing import Any

from benchmarks.tls import measure


class Server:
    """A request costs it 100 us, and a connection 1,000 us more if it has TLS."""

    def __init__(self, handshake_us: float) -> None:
        self.handshake_us = handshake_us
        self.spent_us = 0.0

    def thread_cpu_seconds(self) -> float:
        return self.spent_us / 1e6

    def work(self, count: int) -> None:
        self.spent_us += self.handshake_us + count * 100


def test_a_connection_costs_its_handshake_and_one_request() -> None:
    plain: Any = Server(0)
    secure: Any = Server(1000)
    cost = measure(plain, secure, Server.work, 1.0, 3)  # type: ignore[arg-type]
    assert round(cost.plain) == 100
    assert round(cost.secure) == 101  # 1,500 requests share a handshake
    assert round(cost.handshake) == 999
