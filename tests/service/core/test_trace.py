from __future__ import annotations

from service.core.trace import MOST_STEPS, Batch, Trace, new_id


def batch() -> Batch:
    return Batch(("mnist", "2"), requests=1, rows=1, error="")


def test_a_step_has_an_id_of_its_own_which_a_run_knows() -> None:
    trace, run = Trace(7, 0), batch()
    trace.add(1.0)
    trace.add(run)
    assert run.members == [(7, trace.step_id(2))]
    assert len({trace.span_id, trace.step_id(1), trace.step_id(2)}) == 3


def test_ids_fit_and_are_never_zero() -> None:
    assert all(0 < Trace(7, 0).step_id(MOST_STEPS + 3) < 2**64 for _ in range(100))
    assert {new_id(1) for _ in range(100)} == {1}


def test_a_request_of_very_many_runs_remembers_the_first() -> None:
    trace = Trace(7, 0)
    for _ in range(MOST_STEPS + 5):
        trace.add(batch())
    assert len(trace.steps) == MOST_STEPS
    assert trace.left_out == 5


def test_a_run_that_outlives_its_request_is_no_step_of_it() -> None:
    trace, run = Trace(7, 0), batch()
    trace.code = "504"
    trace.add(run)
    assert (trace.steps, run.members) == ([], [])


def test_a_message_belongs_to_its_stream() -> None:
    stream = Trace(7, 3, "a=b")
    message = stream.message()
    assert (message.trace_id, message.parent_id, message.is_message) == (7, stream.span_id, True)
    assert message.span_id != stream.span_id
    assert message.state == ""
