from __future__ import annotations

import asyncio
import base64
import io
import re
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.core.batching import Batcher
from service.core.digits import HINTS, REASONS, Columns
from service.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    RequestTooLarge,
    UnsupportedMediaType,
)
from service.core.off_loop import INLINE_BYTES
from service.http.digits import fields_of, objects_of, predict
from service.http.message import JSON, OCTETS, HttpRequest, to_json
from service.http.pictures import FORM, PICTURES
from service.operations.digits import INLINE_ROWS
from tests.conftest import ROOT
from tests.e2e.onnx_models import judged_image, publish_judging
from tests.service.classifiers import publish_colours
from tests.service.composition import Operations
from tests.service.linear_model import WEIGHTS, publish_linear, run_with_operations
from tests.service.recording_bytes import RecordingBytes

CARD = {"output_kinds": {"scores": "logits"}}
IMAGE = np.random.default_rng(3).integers(0, 256, (28, 28), np.uint8)
DIGIT = int((IMAGE.ravel() @ WEIGHTS).argmax())


def request_of(body: bytes, content_type: str | None, query: str = "") -> HttpRequest:
    headers = {} if content_type is None else {"content-type": content_type}
    return HttpRequest("POST", "/predict", headers.get, body, query)


async def answer_to(operations: Operations, *request: Any) -> Any:
    response = await predict(operations.digits, request_of(*request))
    assert response.status == 200
    return orjson.loads(response.body)


@pytest.mark.parametrize(
    ("body", "content_type", "count"),
    [
        (IMAGE.tobytes(), OCTETS, 1),
        (IMAGE.tobytes() * 3, OCTETS, 3),
        (orjson.dumps(IMAGE.tolist()), JSON, 1),
        (orjson.dumps(IMAGE.ravel().tolist()), JSON, 1),
        (orjson.dumps([IMAGE.tolist()] * 2), JSON, 2),
        (orjson.dumps({"image": IMAGE.tolist()}), JSON, 1),
        (orjson.dumps(IMAGE.astype(float).tolist()), " Application/JSON ; charset=utf-8", 1),
    ],
)
def test_pixels_and_numbers_are_classified(
    tmp_path: Path, body: bytes, content_type: str, count: int
) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        answer = await answer_to(operations, body, content_type)
        assert (answer["model_name"], answer["model_version"]) == ("linear", "1")
        assert [prediction["digit"] for prediction in answer["predictions"]] == [DIGIT] * count
        for prediction in answer["predictions"]:
            assert prediction.keys() == {
                "digit",
                "probabilities",
                "entropy_bits",
                "prediction_set",
                "accepted",
            }
            assert prediction["accepted"] is prediction["prediction_set"] is None
            assert len(prediction["probabilities"]) == 10
            assert abs(sum(prediction["probabilities"]) - 1) < 1e-5

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("count", [1, 20])
def test_json_of_many_images_is_converted_off_the_event_loop(tmp_path: Path, count: int) -> None:
    publish_linear(tmp_path, card=CARD)
    body = RecordingBytes(orjson.dumps([IMAGE.tolist()] * count))
    is_long = len(body) > INLINE_BYTES
    assert is_long == (count > 1)

    async def scenario(operations: Operations) -> None:
        answer = await answer_to(operations, body, JSON)
        assert [prediction["digit"] for prediction in answer["predictions"]] == [DIGIT] * count
        assert (threading.get_ident() in body.threads) is False
        assert bool(body.threads) is is_long

    run_with_operations(tmp_path, scenario)


def test_many_images_have_the_answers_of_each_alone(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    images = np.random.default_rng(4).integers(0, 256, (INLINE_ROWS + 1, 28, 28), np.uint8)

    async def scenario(operations: Operations) -> None:
        together = await answer_to(operations, images.tobytes(), OCTETS)
        alone = await answer_to(operations, images[-1].tobytes(), OCTETS)
        assert len(together["predictions"]) == len(images)
        expected = [int((image.ravel() @ WEIGHTS).argmax()) for image in images]
        assert [prediction["digit"] for prediction in together["predictions"]] == expected
        last, only = together["predictions"][-1], alone["predictions"][0]
        assert np.allclose(last["probabilities"], only["probabilities"], atol=1e-6)

    run_with_operations(tmp_path, scenario)


@given(st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_columns_have_the_json_of_their_rows(rows: int, judges: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Very small values are written with an exponent, and some are 0.
    probabilities = random.dirichlet(np.full(10, 0.02), rows).astype(np.float32)
    judgement = None
    if judges:
        codes = random.integers(0, 256, rows).astype(np.uint8)
        judgement = random.random(rows) < 0.5, codes, random.random((rows, 10)) < 0.2
    digits, entropies = probabilities.argmax(axis=1), random.exponential(size=rows)
    columns = Columns(digits, probabilities, entropies, judgement)
    assert b"[" + objects_of(columns) + b"]" == to_json(fields_of(columns.predictions()))


@pytest.mark.parametrize("model", ["linear", "judge"])
def test_requests_of_one_run_have_the_answers_of_each_alone(tmp_path: Path, model: str) -> None:
    publish_linear(tmp_path, card=CARD)
    publish_judging(tmp_path)
    random = np.random.default_rng(5)
    images = [random.integers(0, 256, (1 + i % 3, 28, 28), np.uint8) for i in range(12)]
    images += [judged_image(5, i % 5)[None] for i in range(6)]

    async def scenario(operations: Operations) -> None:
        async def answer(image: np.ndarray) -> Any:
            request = request_of(image.tobytes(), OCTETS, f"model={model}")
            response = await predict(operations.digits, request)
            assert response.headers == [("content-type", JSON)]
            return orjson.loads(response.body)

        statistics = operations.inference.repository.get(model, "").batcher.statistics
        alone = [await answer(image) for image in images]
        counted = dict(statistics.judgements)
        together = await asyncio.gather(*[answer(image) for image in images])
        assert statistics.as_dict()["execution_count"] == len(images) + 1
        assert statistics.judgements == {key: 2 * count for key, count in counted.items()}
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            for row, same in zip(one["predictions"], other["predictions"], strict=True):
                for name in ("probabilities", "entropy_bits"):
                    assert np.allclose(row.pop(name), same.pop(name), atol=1e-6)
                assert list(row.items()) == list(same.items())

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize("rows", [9, INLINE_ROWS + 1])
def test_many_images_are_explained_as_one_is(tmp_path: Path, rows: int) -> None:
    async def explain(operations: Operations) -> None:
        request = request_of(bytes(784 * rows), OCTETS, "explain=true")
        response = await predict(operations.digits, request)
        answer = orjson.loads(response.body)
        assert answer["steps"] == []
        assert len(answer["predictions"]) == rows
        assert [name for name, _ in response.headers] == ["content-type", "server-timing"]

    publish_linear(tmp_path, card=CARD)
    run_with_operations(tmp_path, explain)


@pytest.mark.parametrize("start", ["", '{"image":', '{ "image" :', '{"image":[0],"image":'])
@pytest.mark.parametrize("at", [0, 1, 783])
@pytest.mark.parametrize("word", ["true", "false"])
def test_booleans_are_refused_wherever_they_are(
    tmp_path: Path, start: str, at: int, word: str
) -> None:
    """Python takes true for 1."""
    publish_linear(tmp_path, card=CARD)
    values = ["0"] * 784
    values[at] = word
    body = f"{start}[{','.join(values)}]{'}' if start else ''}".encode()

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="must hold only numbers"):
            await predict(operations.digits, request_of(body, JSON))

    run_with_operations(tmp_path, scenario)


def test_json_above_the_limit_is_refused_unparsed(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    body = RecordingBytes(b"[" + b"[0]," * (2**20) + b"[0]]")

    async def scenario(operations: Operations) -> None:
        with pytest.raises(RequestTooLarge, match="max_json_bytes"):
            await predict(operations.digits, request_of(body, JSON))
        assert body.threads == set()

    run_with_operations(tmp_path, scenario)


def test_a_query_that_takes_long_to_parse_is_refused(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match="8192 characters"):
            await predict(operations.digits, request_of(IMAGE.tobytes(), OCTETS, "a=b&" * 16_000))

    run_with_operations(tmp_path, scenario)


def test_picture_is_classified(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    picture = (ROOT / "docs" / "seven.png").read_bytes()

    async def scenario(operations: Operations) -> None:
        answer = await answer_to(operations, picture, "image/png")
        assert len(answer["predictions"]) == 1

    run_with_operations(tmp_path, scenario)


def bodies(picture: bytes) -> list[tuple[bytes, str]]:
    """A picture in every form that holds one, with the content type."""
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="7.png"\r\n\r\n'
    return [
        *[(picture, kind) for kind in PICTURES],
        (part + picture + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (orjson.dumps({"image": url}), JSON),
        (orjson.dumps(url), JSON),
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_in_any_body_has_the_same_answer(tmp_path: Path, kind: str) -> None:
    publish_linear(tmp_path, card=CARD)
    file = io.BytesIO()
    Image.open(ROOT / "docs" / "seven.png").resize((60, 60)).save(file, kind)

    async def scenario(operations: Operations) -> None:
        answers = [await answer_to(operations, *body) for body in bodies(file.getvalue())]
        assert len(answers) == 8
        assert all(answer == answers[0] for answer in answers)
        assert "steps" not in answers[0]

    run_with_operations(tmp_path, scenario)


def test_explain_shows_each_step_and_what_the_model_sees(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    small = (ROOT / "docs" / "seven.png").read_bytes()
    file = io.BytesIO()
    Image.open(io.BytesIO(small)).resize((100, 120)).save(file, "PNG")

    async def scenario(operations: Operations) -> None:
        for body in bodies(file.getvalue()):
            explained = await answer_to(operations, *body, "explain=true")
            steps = explained.pop("steps")
            assert explained == await answer_to(operations, *body, "explain=false")
            pictures = [decoded(step["png"]) for step in steps]
            assert len({step["name"] for step in steps}) == len(steps) > 1
            again = await answer_to(operations, pictures[-1].tobytes(), OCTETS)
            assert pictures[-1].size == (28, 28)
            assert again["predictions"] == explained["predictions"]
        (step,) = (await answer_to(operations, small, "image/png", "explain=1"))["steps"]
        assert decoded(step["png"]).tobytes() == Image.open(io.BytesIO(small)).tobytes()
        assert (await answer_to(operations, bytes(784), OCTETS, "explain=true"))["steps"] == []
        with pytest.raises(InvalidArgument, match="explain: is 'maybe'"):
            await answer_to(operations, small, "image/png", "explain=maybe")

    run_with_operations(tmp_path, scenario)


def test_explain_says_how_long_the_picture_and_the_model_took(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        for query, has_times in (("", False), ("explain=true", True)):
            request = request_of(bytes(784), OCTETS, query)
            timing = dict((await predict(operations.digits, request)).headers).get("server-timing")
            assert bool(timing) is has_times
            if timing:
                assert re.fullmatch(r"picture;dur=\d+\.\d{3}, model;dur=\d+\.\d{3}", timing)

    run_with_operations(tmp_path, scenario)


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("rows", [1, INLINE_ROWS + 1])
def test_an_answer_says_what_is_not_accepted_and_why(tmp_path: Path, rows: int) -> None:
    publish_judging(tmp_path)
    images = [judged_image(3), judged_image(7, REASONS.index("unsure"), second=1)]

    async def scenario(operations: Operations) -> None:
        for image, members in zip(images, ([3], [1, 7]), strict=True):
            body = np.stack([image] * rows).tobytes()
            answer = await answer_to(operations, body, OCTETS, "model=judge")
            for prediction in answer["predictions"]:
                assert prediction["prediction_set"] == members
                if members == [3]:
                    assert prediction["accepted"] is True
                    assert not {"reason", "hint"} & prediction.keys()
                else:
                    assert prediction["accepted"] is False
                    assert prediction["reason"] == "unsure"
                    assert prediction["hint"] == HINTS[REASONS.index("unsure")]

    run_with_operations(tmp_path, scenario)


def test_query_selects_the_model_and_its_version(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        for query in ("", "model=&version=", "model=linear&version=1", "unknown=x", "=&&"):
            answer = await answer_to(operations, IMAGE.tobytes(), OCTETS, query)
            assert answer["predictions"][0]["digit"] == DIGIT
        for query, name in (("model=none", "none"), ("version=9", "9")):
            with pytest.raises(ModelNotFound, match=name):
                await answer_to(operations, IMAGE.tobytes(), OCTETS, query)

    run_with_operations(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "content_type", "error", "message"),
    [
        (b"", None, UnsupportedMediaType, "Content-Type is ''"),
        (b"", "text/plain", UnsupportedMediaType, "'text/plain'.*image/png"),
        (b"x", "image/png", InvalidArgument, "image"),
        (bytes(785), OCTETS, InvalidArgument, "784"),
        (b"{", JSON, InvalidArgument, "not valid JSON"),
        (b"{}", JSON, InvalidArgument, 'no "image"'),
        (b'{"image": 7}', JSON, InvalidArgument, "list of numbers.*data URL"),
        (b'{"image": "seven"}', JSON, InvalidArgument, "data URL"),
        (b'"data:image/png;base64,AAAA"', JSON, InvalidArgument, "this is not a PNG"),
        (b"", "multipart/form-data", InvalidArgument, "boundary"),
        (b"", "multipart/form-data; boundary=a", InvalidArgument, "form"),
        (b"", "application/x-www-form-urlencoded", UnsupportedMediaType, "multipart/form-data"),
        (b"7", JSON, InvalidArgument, "list of numbers"),
        (b"[[1, 2], [3]]", JSON, InvalidArgument, "different lengths"),
        (orjson.dumps([0.5] * 784), JSON, InvalidArgument, "by 255"),
        (orjson.dumps([1] * 783), JSON, InvalidArgument, "image"),
    ],
)
def test_wrong_body_is_rejected(
    tmp_path: Path, body: bytes, content_type: str | None, error: type[Exception], message: str
) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(error, match=message):
            await answer_to(operations, body, content_type)

    run_with_operations(tmp_path, scenario)


@given(st.data())
def test_arbitrary_bodies_are_classified_or_rejected(data: st.DataObject) -> None:
    content_type = data.draw(st.sampled_from([JSON, OCTETS, FORM, *PICTURES]))
    body = data.draw(st.binary(max_size=100))

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument):
            await answer_to(operations, body, content_type)

    run_with_operations(Path("no-such-folder"), scenario)  # rejecting a body needs no model


class Overdue(Batcher):
    """Lets the deadline of a request pass before it is queued, and remembers all deadlines."""

    deadlines: ClassVar[list[float | None]] = []

    def submit(
        self, inputs: Any, rows: int, deadline: float | None = None, *others: Any, **named: Any
    ) -> Any:
        self.deadlines.append(deadline)
        if deadline is None or deadline > asyncio.get_running_loop().time() + 1:
            return super().submit(inputs, rows, deadline, *others, **named)
        return asyncio.get_running_loop().create_future()  # of a model that does not answer


def test_timeout_ends_a_request(tmp_path: Path) -> None:
    publish_linear(tmp_path, card=CARD)
    publish_colours(tmp_path, output_kinds={"y": "logits"}, picture={})
    picture = io.BytesIO()
    Image.fromarray(IMAGE).save(picture, "PNG")

    async def scenario(operations: Operations) -> None:
        for model, body in (
            ("linear", (IMAGE.tobytes(), OCTETS)),
            ("linear", (picture.getvalue(), "image/png")),
            ("colours", (bytes(48), OCTETS)),
        ):
            Overdue.deadlines.clear()
            for text in ("0.02", ".02", "2e-2"):
                with pytest.raises(DeadlineExceeded, match="the timeout passed"):
                    await answer_to(operations, *body, f"model={model}&timeout={text}")
            for text in ("86400", "9999.5"):
                await answer_to(operations, *body, f"model={model}&timeout={text}")
            await answer_to(operations, *body, f"model={model}")
            assert None not in Overdue.deadlines[:5]
            assert Overdue.deadlines[5:] == [None]

    run_with_operations(tmp_path, scenario, Overdue)


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "nan", "inf", "1e999", "86401", "1_0", "1s", "0x1", "%D9%A1", "1%202", "9" * 8000],
)
def test_a_timeout_that_is_no_number_of_seconds_is_refused(tmp_path: Path, text: str) -> None:
    publish_linear(tmp_path, card=CARD)

    async def scenario(operations: Operations) -> None:
        with pytest.raises(InvalidArgument, match=r"^timeout: is '"):
            await predict(operations.digits, request_of(bytes(784), OCTETS, f"timeout={text}"))

    run_with_operations(tmp_path, scenario)
