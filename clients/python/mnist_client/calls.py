"""The calls that a client makes: each knows its request and its result on both transports.

Strategy: no input or output here. A call gives an `HttpRequest` or a `GrpcRequest`; a transport
sends it and hands back the answer, from which the call makes a result. So the four transports
(synchronous and asyncio, HTTP and gRPC) share everything but the sending.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from mnist_client.errors import ClientError, UnexpectedAnswer
from mnist_client.images import Payload
from mnist_client.results import (
    Box,
    Health,
    ModelMetadata,
    Prediction,
    ReadDigit,
    Reading,
    ServerMetadata,
    Step,
    Tensor,
    Timings,
)

if TYPE_CHECKING:
    from mnist_client.stubs.digits.v1 import digits_pb2

T = TypeVar("T")
_LONGEST_TIMEOUT_S = 86_400  # that the server accepts
_DIGITS = "/digits.v1.DigitClassifier/"
_INFERENCE = "/inference.GRPCInferenceService/"


class HttpRequest(NamedTuple):
    """A request; `path` is relative to the address and has its query."""

    method: str
    path: str
    content: bytes = b""
    media_type: str = ""


class HttpAnswer(NamedTuple):
    """An answer with a status that the call expects; `headers` finds any case of their names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class GrpcRequest(NamedTuple):
    """A request: the method's full name and the message's bytes."""

    method: str
    message: bytes


class GrpcAnswer(NamedTuple):
    """A message's bytes, and the id from the trailing metadata."""

    message: bytes
    request_id: str
    seconds: float


class Call(ABC, Generic[T]):
    """One request, and how its answer becomes a result."""

    # Statuses that are answers to this call, not errors.
    statuses: tuple[int, ...] = (200,)

    @abstractmethod
    def http_request(self, timeout: float) -> HttpRequest:
        """The request over HTTP; the server need not answer after `timeout` seconds."""

    @abstractmethod
    def from_http(self, answer: HttpAnswer) -> T:
        """The result of an answer. For a strange one it may raise whatever parsing raises."""

    @abstractmethod
    def grpc_request(self) -> GrpcRequest:
        """The request over gRPC."""

    @abstractmethod
    def from_grpc(self, answer: GrpcAnswer) -> T:
        """The result of an answer. For a strange one it may raise whatever parsing raises."""


def result_of(convert: Callable[[Any], T], answer: HttpAnswer | GrpcAnswer, address: str) -> T:
    """The result of an answer. Raises UnexpectedAnswer if it is not what the server promises."""
    try:
        return convert(answer)
    except ClientError:
        raise
    # Whatever another server sends: KeyError, ValueError, TypeError, protobuf's DecodeError, ...
    except Exception as error:
        raise UnexpectedAnswer(
            f"The answer from {address} is not one of mnist-service ({error!r}); check the address."
        ) from error


@dataclass(frozen=True, slots=True)
class Predict(Call[list[Prediction]]):
    """Classify payloads: one picture, or the pixels of any number of images."""

    payloads: tuple[Payload, ...]
    model: str
    version: str
    explain: bool = False

    def http_request(self, timeout: float) -> HttpRequest:
        explain = self.explain and "true"
        query = _query(timeout, model=self.model, version=self.version, explain=explain)
        content = b"".join(payload.data for payload in self.payloads)
        return HttpRequest("POST", f"predict{query}", content, self.payloads[0].media_type)

    def from_http(self, answer: HttpAnswer) -> list[Prediction]:
        body = json.loads(answer.body)
        rows = body["predictions"]
        if rows and "digit" not in rows[0]:
            raise UnexpectedAnswer(
                f"Model '{body['model_name']}' classifies something other than digits; its answer "
                f"is {rows[0].get('label')}."
            )
        steps = tuple(
            Step(step["name"], b64decode(step["png"].partition(",")[2]))
            for step in body.get("steps", ())
        )
        timings = _timings(answer)
        request_id = answer.headers.get("x-request-id", "")
        names = str(body["model_name"]), str(body["model_version"])
        return self._checked([_prediction(row, *names, timings, request_id, steps) for row in rows])

    def grpc_request(self) -> GrpcRequest:
        from mnist_client.stubs.digits.v1 import digits_pb2

        request = digits_pb2.PredictRequest(
            model_name=self.model, model_version=self.version, explain=self.explain
        )
        if self.payloads[0].is_pixels:
            request.pixels = b"".join(payload.data for payload in self.payloads)
        else:
            request.image = self.payloads[0].data
        return GrpcRequest(_DIGITS + "Predict", request.SerializeToString())

    def from_grpc(self, answer: GrpcAnswer) -> list[Prediction]:
        from mnist_client.stubs.digits.v1 import digits_pb2

        response = digits_pb2.PredictResponse.FromString(answer.message)
        steps = tuple(Step(step.name, step.png) for step in response.steps)
        return self._checked(
            [_of_message(row, response, answer, steps) for row in response.predictions]
        )

    def _checked(self, predictions: list[Prediction]) -> list[Prediction]:
        if len(predictions) != len(self.payloads):
            raise ValueError(f"{len(predictions)} predictions for {len(self.payloads)} images")
        return predictions


@dataclass(frozen=True, slots=True)
class Read(Call[Reading]):
    """Read all digits on a picture."""

    payload: Payload
    model: str
    version: str

    def http_request(self, timeout: float) -> HttpRequest:
        query = _query(timeout, model=self.model, version=self.version)
        return HttpRequest("POST", f"read{query}", self.payload.data, self.payload.media_type)

    def from_http(self, answer: HttpAnswer) -> Reading:
        body = json.loads(answer.body)
        timings = _timings(answer)
        request_id = answer.headers.get("x-request-id", "")
        names = str(body["model_name"]), str(body["model_version"])
        digits = [
            ReadDigit(
                _box(row["box"]),
                int(row["line"]),
                _prediction(row, *names, timings, request_id),
            )
            for row in body["digits"]
        ]
        text, lines, hint = str(body["text"]), body["lines"], str(body.get("hint", ""))
        return Reading(
            text, tuple(map(str, lines)), tuple(digits), hint, *names, timings, request_id
        )

    def grpc_request(self) -> GrpcRequest:
        from mnist_client.stubs.digits.v1 import digits_pb2

        request = digits_pb2.ReadRequest(
            image=self.payload.data, model_name=self.model, model_version=self.version
        )
        return GrpcRequest(_DIGITS + "Read", request.SerializeToString())

    def from_grpc(self, answer: GrpcAnswer) -> Reading:
        from mnist_client.stubs.digits.v1 import digits_pb2

        response = digits_pb2.ReadResponse.FromString(answer.message)
        digits = [
            ReadDigit(
                Box(row.box.left, row.box.top, row.box.right, row.box.bottom),
                row.line,
                _of_message(row.prediction, response, answer),
            )
            for row in response.digits
        ]
        return Reading(
            response.text,
            tuple(response.lines),
            tuple(digits),
            response.hint,
            response.model_name,
            response.model_version,
            Timings(1000 * answer.seconds),
            answer.request_id,
        )


class Ready(Call[Health]):
    """Whether the server takes requests."""

    statuses = (200, 503)

    def http_request(self, timeout: float) -> HttpRequest:
        return HttpRequest("GET", "v2/health/ready")

    def from_http(self, answer: HttpAnswer) -> Health:
        body = json.loads(answer.body)
        # A 503 without `ready` is an error like any other, of a proxy or of a full server.
        return Health(True, body.get("ready") is True, body.get("reason") or body.get("error", ""))

    def grpc_request(self) -> GrpcRequest:
        return GrpcRequest(_INFERENCE + "ServerReady", b"")

    def from_grpc(self, answer: GrpcAnswer) -> Health:
        from mnist_client.stubs.inference import inference_pb2

        ready = inference_pb2.ServerReadyResponse.FromString(answer.message).ready
        return Health(True, ready, "" if ready else "The server is not ready.")


class DescribeServer(Call[ServerMetadata]):
    """Name, version and extensions of the server."""

    def http_request(self, timeout: float) -> HttpRequest:
        return HttpRequest("GET", "v2")

    def from_http(self, answer: HttpAnswer) -> ServerMetadata:
        body = json.loads(answer.body)
        return ServerMetadata(body["name"], body["version"], tuple(body["extensions"]))

    def grpc_request(self) -> GrpcRequest:
        return GrpcRequest(_INFERENCE + "ServerMetadata", b"")

    def from_grpc(self, answer: GrpcAnswer) -> ServerMetadata:
        from mnist_client.stubs.inference import inference_pb2

        response = inference_pb2.ServerMetadataResponse.FromString(answer.message)
        return ServerMetadata(response.name, response.version, tuple(response.extensions))


@dataclass(frozen=True, slots=True)
class DescribeModel(Call[ModelMetadata]):
    """Versions, tensors and properties of a model."""

    model: str
    version: str

    def http_request(self, timeout: float) -> HttpRequest:
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return HttpRequest("GET", f"v2/models/{quote(self.model, safe='')}{version}")

    def from_http(self, answer: HttpAnswer) -> ModelMetadata:
        body = json.loads(answer.body)
        inputs, outputs = (
            tuple(Tensor(row["name"], row["datatype"], tuple(row["shape"])) for row in body[kind])
            for kind in ("inputs", "outputs")
        )
        properties = tuple(
            (name, str(value)) for name, value in sorted(body.get("parameters", {}).items())
        )
        return ModelMetadata(
            body["name"], tuple(body["versions"]), body["platform"], inputs, outputs, properties
        )

    def grpc_request(self) -> GrpcRequest:
        from mnist_client.stubs.inference import inference_pb2

        request = inference_pb2.ModelMetadataRequest(name=self.model, version=self.version)
        return GrpcRequest(_INFERENCE + "ModelMetadata", request.SerializeToString())

    def from_grpc(self, answer: GrpcAnswer) -> ModelMetadata:
        from mnist_client.stubs.inference import inference_pb2

        response = inference_pb2.ModelMetadataResponse.FromString(answer.message)
        inputs, outputs = (
            tuple(Tensor(row.name, row.datatype, tuple(row.shape)) for row in rows)
            for rows in (response.inputs, response.outputs)
        )
        return ModelMetadata(
            response.name,
            tuple(response.versions),
            response.platform,
            inputs,
            outputs,
            tuple(sorted(response.properties.items())),
        )


def _query(timeout: float, **parameters: str | bool) -> str:
    """The query with the seconds that are left, and with those parameters that are not empty."""
    given = {name: value for name, value in parameters.items() if value}
    seconds = f"{min(max(timeout, 0.001), _LONGEST_TIMEOUT_S):.6g}"
    return "?" + urlencode({**given, "timeout": seconds})


def _timings(answer: HttpAnswer) -> Timings:
    """What Server-Timing says ("picture;dur=1.2, model;dur=3.4"), and the time of the call."""
    entries = answer.headers.get("server-timing", "").split(",")
    times = {
        name.strip(): float(duration)
        for name, _, duration in (e.partition(";dur=") for e in entries)
        if duration
    }
    return Timings(1000 * answer.seconds, times.get("picture"), times.get("model"))


def _prediction(
    row: dict[str, Any],
    model: str,
    version: str,
    timings: Timings,
    request_id: str,
    steps: tuple[Step, ...] = (),
) -> Prediction:
    members, accepted = row["prediction_set"], row["accepted"]
    if accepted not in (True, False, None):
        raise ValueError(f"accepted is {accepted!r}")
    digit, probabilities = int(row["digit"]), tuple(map(float, row["probabilities"]))
    return Prediction(
        digit=_checked_digit(digit, probabilities),
        probabilities=probabilities,
        entropy_bits=float(row["entropy_bits"]),
        prediction_set=None if members is None else tuple(map(int, members)),
        accepted=accepted,
        reason=str(row.get("reason", "")),
        hint=str(row.get("hint", "")),
        model_name=model,
        model_version=version,
        timings=timings,
        request_id=request_id,
        steps=steps,
    )


def _box(edges: list[Any]) -> Box:
    left, top, right, bottom = map(int, edges)
    if not (0 <= left <= right < 2**31 and 0 <= top <= bottom < 2**31):
        raise ValueError("a box is inside out, or larger than any picture")
    return Box(left, top, right, bottom)


def _checked_digit(digit: int, probabilities: tuple[float, ...]) -> int:
    # A sum of float32 may be a little above 1; NaN is between no two numbers.
    if len(probabilities) != 10 or not all(0 <= value < 1.001 for value in probabilities):
        raise ValueError(f"probabilities are {probabilities}")
    if not 0 <= digit < 10:
        raise ValueError(f"digit is {digit}")
    return digit


def _of_message(
    row: digits_pb2.Prediction,
    response: digits_pb2.PredictResponse | digits_pb2.ReadResponse,
    answer: GrpcAnswer,
    steps: tuple[Step, ...] = (),
) -> Prediction:
    probabilities = tuple(row.probabilities)
    return Prediction(
        digit=_checked_digit(row.digit, probabilities),
        probabilities=probabilities,
        entropy_bits=row.entropy_bits,
        prediction_set=tuple(row.prediction_set) or None,
        accepted=row.accepted if row.HasField("accepted") else None,
        reason=row.reason,
        hint=row.hint,
        model_name=response.model_name,
        model_version=response.model_version,
        timings=Timings(1000 * answer.seconds),
        request_id=answer.request_id,
        steps=steps,
    )
