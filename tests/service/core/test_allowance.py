from __future__ import annotations

from service.core.allowance import Allowance


def test_an_allowance_is_used_up_and_grows_with_time_up_to_its_burst() -> None:
    allowance = Allowance(3)
    assert [allowance.use(10.0) for _ in range(4)] == [True, True, True, False]
    assert allowance.use(11.0)  # three more per second
    assert [allowance.use(1000.0) for _ in range(4)] == [True, True, True, False]


def test_an_allowance_is_overdrawn_beyond_its_debt() -> None:
    allowance = Allowance(1, debt=2)
    seen = []
    for _ in range(4):
        allowance.use(0.0)
        seen.append(allowance.is_overdrawn)
    assert seen == [False, False, False, True]
