"""The values of knobs to search."""

from __future__ import annotations

import pytest

from training.errors import UsageError
from training.search.space import cells, parse_varied


def test_values_of_a_knob_are_parsed() -> None:
    assert parse_varied("lr=0.1,1").choices == ("0.1", "1")
    assert parse_varied("hidden=30+30,256").value("30,30") == (30, 30)
    assert parse_varied("batch-size=full").value("full") == 0
    assert (parse_varied("lr=1e-4:0.1").low, parse_varied("lr=1e-4:0.1").high) == (1e-4, 0.1)
    assert len(cells((parse_varied("lr=1,2,3"), parse_varied("l2=0,1")))) == 6
    for wrong in ("speed=3", "lr=", "lr=fast", "lr=2:1", "activation=relu:tanh", "activation=x"):
        with pytest.raises(UsageError):
            parse_varied(wrong)
    with pytest.raises(UsageError, match="--lr"):
        cells((parse_varied("lr=0.1:1"),))
