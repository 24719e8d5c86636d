from __future__ import annotations

import numpy as np
import pytest

from service.core.classification.classifier import Classifier, NotAClassifier, classifier_of
from service.core.classification.pictures import PictureError, rule_of
from service.core.datatypes import to_bfloat16
from service.core.errors import InvalidArgument, ModelFault
from service.core.tensors import TensorSpec

INPUTS = [TensorSpec("x", "FP32", (-1, 4))]


def classifier(
    shape: tuple[int, ...] = (-1, 3), kind: str = "logits", labels: tuple[str, ...] = ()
) -> Classifier:
    return classifier_of(INPUTS, [TensorSpec("y", "FP32", shape)], [kind], {"y": labels}, None)


def test_logits_become_probabilities_by_label_most_probable_first() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, 0.0, 0.0]], np.float32)
    rows = classifier(labels=("cat", "dog", "eel")).classifications([logits], 2, 10, "m")
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert (rows[0].label, rows[0].class_index) == ("dog", 1)
    assert list(rows[0].probabilities) == ["dog", "eel", "cat"]
    assert list(rows[0].probabilities.values()) == pytest.approx(sorted(expected)[::-1])
    assert rows[0].entropy_bits == pytest.approx(-(expected * np.log2(expected)).sum())
    assert (rows[1].label, rows[1].entropy_bits) == ("cat", 0.0)


def test_probabilities_are_bounded_and_the_entropy_is_of_all_classes() -> None:
    uniform = np.full((1, 1000), 1 / 1000, np.float32)
    (row,) = classifier((-1, 1000), "probabilities").classifications([uniform], 1, 5, "m")
    assert list(row.probabilities) == ["0", "1", "2", "3", "4"]
    assert row.entropy_bits == pytest.approx(np.log2(1000), abs=1e-4)


@pytest.mark.parametrize(("kind", "value"), [("logits", np.log(3)), ("probabilities", 0.75)])
@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_number_is_that_of_the_second_of_two_classes(
    shape: tuple[int, ...], kind: str, value: float
) -> None:
    output = np.full([1, *shape[1:]], value, np.float32)
    (row,) = classifier(shape, kind, ("no", "yes")).classifications([output], 1, 10, "m")
    assert row.label == "yes"
    assert row.probabilities == pytest.approx({"yes": 0.75, "no": 0.25})


@pytest.mark.filterwarnings("error")
def test_infinite_logits_are_the_largest_or_the_smallest() -> None:
    inf = np.inf
    logits = np.array([[1, 2, inf], [inf, 2, inf], [-inf, -inf, 3]], np.float32)
    rows = classifier().classifications([logits], 3, 3, "m")
    assert [row.label for row in rows] == ["2", "0", "2"]
    assert [row.probabilities["2"] for row in rows] == [1, 0.5, 1]
    assert [row.entropy_bits for row in rows] == [0, 1, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("logits", [0, np.nan, 1]),
        ("probabilities", [np.nan, np.nan, np.nan]),
        ("probabilities", [0, 0.5, np.inf]),
        ("probabilities", [0, 0.5, 1e300]),
    ],
)
def test_what_has_no_most_probable_class_is_an_error(kind: str, values: list[float]) -> None:
    spec = TensorSpec("y", "FP64", (-1, 3))
    found = classifier_of(INPUTS, [spec], [kind], {}, None)
    with pytest.raises(
        ModelFault, match=r"^Model 'm' is at fault: .* no class is the most probable"
    ):
        found.classifications([np.array([[0.5, 0.5, 0], values])], 2, 3, "m")


@pytest.mark.parametrize("size", [(2, 2), (0, 2), (1, 0)])
def test_an_output_of_other_rows_than_the_input_is_an_error(size: tuple[int, int]) -> None:
    found = classifier((-1, -1))
    with pytest.raises(InvalidArgument, match=r"output 'y' has shape .* for 1 row"):
        found.classifications([np.arange(size[0] * size[1]).reshape(size)], 1, 3, "m")


def test_an_open_output_of_a_model_for_one_row_holds_the_classes() -> None:
    specs = [TensorSpec("x", "FP32", (4,))], [TensorSpec("y", "FP32", (-1,))]
    found = classifier_of(*specs, ["logits"], {"y": ("a", "b", "c")}, None)
    (row,) = found.classifications([np.array([0, 2, 1], np.float32)], 1, 3, "m")
    assert list(row.probabilities) == ["b", "c", "a"]


def test_bfloat16_and_maps_of_one_pixel() -> None:
    spec = TensorSpec("y", "BF16", (-1, 3, 1, 1))
    bits = to_bfloat16(np.array([0.25, 0.5, 0.25])).reshape(1, 3, 1, 1)
    found = classifier_of(INPUTS, [spec], ["probabilities"], {}, None)
    (row,) = found.classifications([bits], 1, 1, "m")
    assert row.probabilities == {"1": 0.5}


def test_equal_labels_are_told_apart_by_their_index() -> None:
    assert classifier(labels=("crane", "dog", "crane")).labels == ("crane (0)", "dog", "crane (2)")


def test_a_label_told_apart_by_its_index_is_none_of_the_others() -> None:
    labels = ("a", "a", "a (1)")
    assert classifier(labels=labels).labels == ("a (0)", "a (1) (1)", "a (1)")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("a", "b"), ["a", "b", "2", "3"]),
        (("2", "b"), ["2", "b", "class 2", "class 3"]),
        (("3", "class 2"), ["3", "class 2", "class class 2", "class class 3"]),
    ],
)
def test_classes_without_a_label_have_names_of_their_own(
    labels: tuple[str, ...], names: list[str]
) -> None:
    (row,) = classifier((-1, -1), labels=labels).classifications([-np.arange(4.0)[None]], 1, 4, "m")
    assert list(row.probabilities) == names


def test_an_input_of_a_single_row_loses_the_number_of_rows() -> None:
    specs = [TensorSpec("a", "FP32", (4,)), TensorSpec("b", "FP32", (1, 4))]
    found = classifier_of(specs, [TensorSpec("y", "FP32", (3,))], ["logits"], {}, None)
    arrays = [np.zeros((1, 4), np.float32)] * 2
    assert [array.shape for array in found.without_count(arrays)] == [(4,), (1, 4)]


def test_a_scalar_input_stays_an_array_of_its_type() -> None:
    specs = [TensorSpec("a", "FP32", ()), TensorSpec("b", "BYTES", ())]
    found = classifier_of(specs, [TensorSpec("y", "FP32", (3,))], ["logits"], {}, None)
    arrays = [np.ones(1, np.float32), np.array([b"text"], object)]
    for before, after in zip(arrays, found.without_count(arrays), strict=True):
        assert isinstance(after, np.ndarray)
        assert (after.shape, after.dtype, after.item()) == ((), before.dtype, before[0])


def test_a_model_without_inputs_is_no_classifier() -> None:
    with pytest.raises(NotAClassifier, match="no inputs"):
        classifier_of([], [TensorSpec("y", "FP32", (3,))], ["logits"], {}, None)


@pytest.mark.parametrize(
    ("spec", "kind", "labels", "message"),
    [
        (TensorSpec("y", "FP32", (-1, 3)), "", (), "lacks output_kinds, .* one of: y"),
        (TensorSpec("y", "FP32", (-1, 5, 3)), "logits", (), r"\[-1, 5, 3\], not one number per"),
        (TensorSpec("y", "BYTES", (-1, 3)), "logits", (), "is BYTES"),
        (TensorSpec("y", "FP32", (-1,), has_rank=False), "logits", (), "any shape, 'y'"),
        (TensorSpec("y", "FP32", (-1, 3)), "logits", ("a", "b"), "2 labels, but 3 classes"),
    ],
)
def test_what_the_card_lacks_is_named(
    spec: TensorSpec, kind: str, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(NotAClassifier, match=message):
        classifier_of(INPUTS, [spec], [kind], {"y": labels}, None)


def test_a_rule_for_pictures_must_fit_even_if_outputs_are_unknown() -> None:
    with pytest.raises(PictureError, match="colour"):
        classifier_of(INPUTS, [TensorSpec("y", "FP32", (-1, 3))], [""], {}, rule_of({}))
