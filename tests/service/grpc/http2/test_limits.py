from __future__ import annotations

from service.grpc.http2.limits import Allowance, Limits


def test_an_allowance_is_used_up_and_grows_with_time_up_to_its_burst() -> None:
    allowance = Allowance(3)
    assert [allowance.use(10.0) for _ in range(4)] == [True, True, True, False]
    assert allowance.use(11.0)  # three more per second
    assert [allowance.use(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_tick_is_half_of_the_shortest_time_and_0_is_never() -> None:
    assert Limits(1, 1, body_timeout=4.0, header_timeout=3.0).tick == 1.5
    assert Limits(1, 1, 9.0, 8.0, 7.0, keepalive_interval=0, keepalive_timeout=6.0).tick == 3.0
