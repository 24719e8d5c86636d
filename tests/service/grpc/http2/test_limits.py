from __future__ import annotations

from service.grpc.http2.limits import Limits


def test_a_tick_is_half_of_the_shortest_time_and_0_is_never() -> None:
    assert Limits(1, 1, body_timeout=4.0, header_timeout=3.0).tick == 1.5
    assert Limits(1, 1, 9.0, 8.0, 7.0, keepalive_interval=0, keepalive_timeout=6.0).tick == 3.0
