from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.core.datatypes import Array
from service.core.digits import (
    HINTS,
    REASONS,
    DigitLayout,
    NotDigits,
    Rows,
    layout_of,
    pixels_from_bytes,
    pixels_from_values,
)
from service.core.errors import InvalidArgument, ModelFault
from service.core.tensors import TensorSpec

PIXELS_IN = TensorSpec("pixels", "UINT8", (-1, 28, 28))
OUTPUTS = [TensorSpec("scores", "FP32", (-1, 10)), TensorSpec("other", "FP32", (-1, 10))]

LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.just(10)), elements=st.floats(-50, 50, width=32)
)


@given(LOGITS)
def test_logits_become_distributions_with_their_entropy(logits: np.ndarray) -> None:
    predictions = DigitLayout(output=0, is_logits=True, image_shape=None).predictions([logits])
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    assert len(predictions) == len(logits)
    for prediction, row in zip(predictions, exact, strict=True):
        assert prediction.digit == prediction.probabilities.argmax()
        assert np.abs(prediction.probabilities - row).max() < 1e-5
        assert abs(float(prediction.probabilities.sum()) - 1) <= 1e-6
        terms = row[row > 0] * np.log2(row[row > 0])
        assert abs(prediction.entropy_bits + terms.sum()) < 1e-3
        assert 0 <= prediction.entropy_bits <= np.log2(10) + 1e-5


@given(LOGITS)
def test_few_rows_and_many_rows_are_computed_alike(logits: np.ndarray) -> None:
    layout = DigitLayout(output=0, is_logits=True, image_shape=None)
    alone = [layout.predictions([row[None]])[0] for row in logits]
    together = layout.predictions([np.concatenate([logits] * 9)])[: len(logits)]
    for one, other in zip(alone, together, strict=True):
        assert one.digit == other.digit
        assert np.array_equal(one.probabilities, other.probabilities)
        assert one.entropy_bits == pytest.approx(other.entropy_bits, abs=1e-6)


def test_certainty_has_an_entropy_of_zero() -> None:
    layout = DigitLayout(output=1, is_logits=False, image_shape=None)
    certain = np.eye(10, dtype=np.float32)
    for rows in (certain[:1], certain):
        for prediction in layout.predictions([np.zeros((1, 1)), rows]):
            assert str(prediction.entropy_bits) == "0.0"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("is_logits", [True, False])
def test_an_output_that_is_not_finite_is_the_fault_of_the_model(
    value: float, rows: int, is_logits: bool
) -> None:
    layout = DigitLayout(output=0, is_logits=is_logits, image_shape=None, model="mine")
    output = np.full((rows, 10), 0.1, np.float32)
    output[-1, 3] = value
    if is_logits and value == -np.inf:  # a digit that the model excludes
        assert layout.predictions([output])[-1].probabilities[3] == 0
        output[-1] = value
    with pytest.raises(ModelFault, match=r"^Model 'mine' is at fault"):
        layout.predictions([output])
    with pytest.raises(ModelFault):
        list(Rows(layout, [[output]]))
    with pytest.raises(ModelFault):  # so nothing is counted
        Rows(layout, [[output]]).judgements()


@pytest.mark.parametrize("rows", [2, 20])
def test_a_model_that_judges_says_what_it_accepts_and_why_not(rows: int) -> None:
    specs = [
        *OUTPUTS,
        TensorSpec("prediction_set", "BOOL", (-1, 10)),
        TensorSpec("accepted", "BOOL", (-1,)),
        TensorSpec("reason", "UINT8", (-1,)),
    ]
    layout = layout_of([PIXELS_IN], specs, ["logits", "probabilities", "", "", ""])
    certain = np.eye(10, dtype=np.float32)[np.arange(rows) % 10]
    members = certain.astype(bool)
    members[1, 7] = True
    accepted = np.arange(rows) != 1
    reason = np.where(accepted, 0, 4).astype(np.uint8)
    outputs = [np.zeros((rows, 10)), certain, members, accepted, reason]
    first, second, *others = layout.predictions(outputs)
    assert first[3:] == ((0,), True, "", "")
    assert second[3:] == ((1, 7), False, "unsure", HINTS[REASONS.index("unsure")])
    assert all(other.accepted for other in others)


@given(st.integers(1, 30), st.booleans(), st.integers(0, 2**32 - 1))
def test_shared_predictions_are_the_predictions_of_each_request(
    rows: int, judges: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(10), rows).astype(np.float32)
    reasons = random.integers(0, 256, rows).astype(np.uint8)
    outputs: list[Array] = [probabilities, reasons == 0, reasons, probabilities > 0.1]
    layout = DigitLayout(0, False, None, (1, 2, 3) if judges else None)
    shared_by_all = layout.shared(outputs)
    start = 0
    while start < rows:
        stop = min(rows, start + int(random.integers(1, 9)))
        shared, judgements = shared_by_all.share(start, stop)
        alone = layout.predictions([output[start:stop] for output in outputs])
        assert len(shared) == len(judgements) == stop - start
        for row, right, judgement in zip(shared, alone, judgements, strict=True):
            assert row.probabilities.tolist() == right.probabilities.tolist()
            assert row.entropy_bits == pytest.approx(right.entropy_bits, abs=1e-12)
            same = {"probabilities": None, "entropy_bits": 0.0}
            assert row._replace(**same) == right._replace(**same)
            assert judgement == (right.accepted, right.reason)
        assert shared[0].digit == alone[0].digit
        assert [row.digit for row in shared[1:]] == [row.digit for row in alone[1:]]
        start = stop


@pytest.mark.parametrize("rows", [2, 20])
def test_only_the_request_whose_row_is_not_finite_is_told(rows: int) -> None:
    output = np.full((rows, 10), 0.1, np.float32)
    output[1, 3] = np.nan
    shared = DigitLayout(output=0, is_logits=False, image_shape=None).shared([output])
    predictions, judgements = shared.share(0, 1)
    assert (predictions[0].digit, judgements) == (0, [(None, "")])
    with pytest.raises(ModelFault):
        shared.share(0, 2)


def test_predictions_made_while_they_are_read_are_those_of_all_at_once() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(10), 1500).astype(np.float32)
    reasons = random.integers(0, len(REASONS), 1500).astype(np.uint8)
    outputs: list[Array] = [probabilities, reasons == 0, reasons, probabilities > 0.1]
    outputs.append(np.float32(1.5))  # of another kind, and without rows
    layout = DigitLayout(0, False, None, (1, 2, 3))
    rows = Rows(
        layout,
        [
            [output[:600] if output.ndim else output for output in outputs],
            [output[600:] if output.ndim else output for output in outputs],
        ],
    )
    expected = layout.predictions(outputs)
    assert len(rows) == len(expected)
    for row, right in zip(rows, expected, strict=True):
        assert row.probabilities.tolist() == right.probabilities.tolist()
        assert row._replace(probabilities=None) == right._replace(probabilities=None)
    assert rows.judgements() == Counter((row.accepted, row.reason) for row in expected)
    plain = Rows(layout._replace(judgement=None), [outputs])
    assert plain.judgements() == {(None, ""): 1500}


@pytest.mark.parametrize("shape", [(20, 1, 10), (20, 10, 1), (20,)])
def test_an_output_of_another_shape_is_the_fault_of_the_model(shape: tuple[int, ...]) -> None:
    rows = Rows(DigitLayout(0, False, None, model="mine"), [[np.zeros(shape, np.float32)]])
    with pytest.raises(ModelFault, match=r"^Model 'mine' is at fault: .* instead of \[N,10\]"):
        rows.judgements()
    few = [np.zeros((2, *shape[1:]), np.float32)]
    with pytest.raises(ModelFault):
        DigitLayout(0, False, None, model="mine").predictions(few)


def test_outputs_that_are_not_read_are_not_kept() -> None:
    outputs = [np.ones((3, 10)), np.ones((3, 500)), np.ones(3), np.ones(3), np.ones((3, 10))]
    kept = DigitLayout(0, False, None, (2, 3, 4)).read(outputs)
    assert [each.size for each in kept] == [30, 1, 3, 3, 30]


@pytest.mark.parametrize("missing", ["accepted", "reason", "prediction_set"])
def test_a_model_without_all_outputs_of_a_judgement_does_not_judge(missing: str) -> None:
    judgement = [("accepted", "BOOL"), ("reason", "UINT8"), ("prediction_set", "BOOL")]
    specs = [
        TensorSpec(name, "FP32" if name == missing else datatype, (-1,))
        for name, datatype in judgement
    ]
    layout = layout_of([PIXELS_IN], [*OUTPUTS, *specs], ["logits", "", "", "", ""])
    outputs = [np.zeros((1, 10), np.float32), *[np.zeros(1)] * 4]
    (prediction,) = layout.predictions(outputs)
    assert prediction[3:] == (None, None, "", "")


def test_every_reason_has_a_sentence() -> None:
    assert len(HINTS) == len(REASONS)
    assert all(hint.endswith(".") for hint in HINTS[1:])


def test_pixels_reach_a_uint8_input_untouched_and_a_float_input_scaled() -> None:
    pixels = np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28)
    (same,) = DigitLayout(output=0, is_logits=False, image_shape=None).inputs(pixels)
    assert same is pixels
    (scaled,) = DigitLayout(output=0, is_logits=False, image_shape=(1, 784)).inputs(pixels)
    assert scaled.shape == (2, 1, 784)
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, pixels.reshape(2, 1, 784) / np.float32(255))


def test_probabilities_are_preferred_to_logits() -> None:
    assert layout_of([PIXELS_IN], OUTPUTS, ["logits", "probabilities"]) == DigitLayout(
        output=1, is_logits=False, image_shape=None
    )
    assert layout_of([PIXELS_IN], OUTPUTS, ["", "logits"]) == DigitLayout(
        output=1, is_logits=True, image_shape=None
    )


@pytest.mark.parametrize("shape", [(-1, 784), (-1, 1, 28, 28), (-1, 28, 28, 1), (-1, 28, 28)])
def test_float_inputs_of_784_values_take_images_in_their_own_shape(shape: tuple[int, ...]) -> None:
    layout = layout_of([TensorSpec("x", "FP32", shape)], OUTPUTS, ["logits", ""])
    assert layout.image_shape == shape[1:]


@pytest.mark.parametrize(
    ("inputs", "kinds", "reason"),
    [
        ([PIXELS_IN], ["", ""], "output_kinds"),
        ([], ["logits", ""], "28x28"),
        ([PIXELS_IN, PIXELS_IN], ["logits", ""], "28x28"),
        ([TensorSpec("x", "UINT8", (-1, 784))], ["logits", ""], "28x28"),
        ([TensorSpec("x", "FP32", (-1, 32, 32))], ["logits", ""], "28x28"),
        ([TensorSpec("x", "FP32", (1, 784))], ["logits", ""], "28x28"),
        ([TensorSpec("x", "FP32", ())], ["logits", ""], "28x28"),
        ([TensorSpec("x", "FP64", (-1, 784))], ["logits", ""], "28x28"),
    ],
)
def test_a_model_that_does_not_classify_digits_says_why(
    inputs: list[TensorSpec], kinds: list[str], reason: str
) -> None:
    with pytest.raises(NotDigits, match=reason):
        layout_of(inputs, OUTPUTS, kinds)


@pytest.mark.parametrize("shape", [(28, 28), (784,), (3, 28, 28), (3, 784)])
def test_numbers_of_images_are_arranged_as_images(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape)
    pixels = pixels_from_values(values)
    assert pixels.shape == (max(1, values.size // 784), 28, 28)
    assert np.array_equal(pixels.ravel(), values.ravel())


@pytest.mark.parametrize("shape", [(), (10,), (28, 27), (1, 1, 28, 28), (2, 3, 784)])
def test_numbers_of_another_shape_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="image"):
        pixels_from_values(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("length", [0, 1, 783, 785])
def test_raw_pixels_come_in_whole_images(length: int) -> None:
    with pytest.raises(InvalidArgument, match="784"):
        pixels_from_bytes(bytes(length))
    assert pixels_from_bytes(bytes(784 * 3)).shape == (3, 28, 28)
