"""The synchronous client."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol, Self, TypeAlias, TypeVar, overload

from mnist_client.address import TLS, Address, parse
from mnist_client.batching import Errors, Group, Grouper, check_concurrency, payload_or_error
from mnist_client.calls import Call, DescribeModel, DescribeServer, Predict, Read, Ready
from mnist_client.errors import ClientError, DeadlineExceeded, InvalidImage, Unreachable
from mnist_client.images import Image, Payload, payload_of
from mnist_client.results import Health, ModelMetadata, Prediction, Reading, ServerMetadata
from mnist_client.retries import Attempts, Retries

T = TypeVar("T")
# A request of `predict_many` or `read_many`; it raises nothing of ours.
_Job: TypeAlias = Callable[[], list[T | ClientError]]
DEFAULT_ADDRESS = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_ANSWER_BYTES = 64 * 2**20
KEY_VARIABLE = "MNIST_KEY"
NO_RETRIES = Retries(attempts=1)
_RETRIES = Retries()


class Defaults:
    """What the calls of a client have in common; without input and output."""

    def __init__(
        self,
        address: str,
        *,
        model: str,
        version: str,
        timeout: float,
        retries: Retries,
        bearer_key: str | None,
        tls: TLS | None,
        connections: int,
        max_answer_bytes: int,
    ) -> None:
        self.address: Address = parse(address)
        source = "bearer_key"
        if bearer_key is None and (bearer_key := os.environ.get(KEY_VARIABLE) or None):
            source = KEY_VARIABLE
        # httpx and grpcio would show the key in their errors.
        if bearer_key is not None and not re.fullmatch("[!-~]([ -~]*[!-~])?", bearer_key):
            raise ValueError(f"{source}: is empty, or has characters that a header cannot carry.")
        self.bearer_key = bearer_key
        if tls is not None and not self.address.is_secure:
            raise ValueError(f"tls: needs an https:// or grpcs:// address, not '{address}'.")
        if connections < 1:
            raise ValueError(f"connections: is {connections}; it must be at least 1.")
        if not 0 < max_answer_bytes < 2**31:
            raise ValueError(
                f"max_answer_bytes: is {max_answer_bytes}; it must be from 1 to {2**31 - 1}."
            )
        self.model, self.version = model, version
        self._timeout, self._retries = timeout, retries
        self.attempts(None)  # checks the timeout

    def attempts(self, timeout: float | None, retries: Retries | None = None) -> Attempts:
        """The attempts of a call that begins now."""
        return Attempts(
            self._retries if retries is None else retries,
            self._timeout if timeout is None else timeout,
        )

    def predict(
        self,
        payloads: tuple[Payload, ...],
        model: str | None,
        version: str | None,
        explain: bool = False,
    ) -> Predict:
        """The call that classifies payloads."""
        return Predict(payloads, *self._names(model, version), explain)

    def read(self, payload: Payload, model: str | None, version: str | None) -> Read:
        """The call that reads a picture."""
        return Read(payload, *self._names(model, version))

    def describe_model(self, model: str | None, version: str | None) -> DescribeModel:
        """The call for a model's metadata; the server has no default for it."""
        name, version = self._names(model, version)
        if not name:
            raise ValueError("model: name the model whose metadata you want, such as 'mnist'.")
        return DescribeModel(name, version)

    def _names(self, model: str | None, version: str | None) -> tuple[str, str]:
        """A version given with the client is one of the client's model."""
        if model is None:
            return self.model, self.version if version is None else version
        return model, version or ""


class _Transport(Protocol):
    def send(self, call: Call[T], timeout: float) -> T: ...

    def close(self) -> None: ...


class Client:
    """Calls a server over HTTP or gRPC; any number of threads may share one.

    `address` is http://, https://, grpc:// or grpcs:// HOST:PORT; the schemes with an s use TLS,
    which `tls` configures. `model` and `version` are those of all calls that name none, by default
    the newest version of the server's default model. `timeout` is the most seconds that a call may
    take, with its retries. `bearer_key`, by default the environment variable MNIST_KEY, is sent as
    "authorization: Bearer KEY", so use TLS with it.
    `connections` bounds those of HTTP; gRPC has one. `max_answer_bytes` bounds each answer, also
    once it is decompressed.

    Raises ValueError for an argument that is wrong, OSError for a file of `tls` that cannot be
    used, and ImportError for gRPC without the extra `grpc`. All methods raise ClientError.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        model: str = "",
        version: str = "",
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: Retries = _RETRIES,
        bearer_key: str | None = None,
        tls: TLS | None = None,
        connections: int = 16,
        max_answer_bytes: int = DEFAULT_MAX_ANSWER_BYTES,
    ) -> None:
        self._defaults = Defaults(
            address,
            model=model,
            version=version,
            timeout=timeout,
            retries=retries,
            bearer_key=bearer_key,
            tls=tls,
            connections=connections,
            max_answer_bytes=max_answer_bytes,
        )
        parsed, key = self._defaults.address, self._defaults.bearer_key
        self._transport: _Transport
        if parsed.is_grpc:
            from mnist_client.grpc_transport import GrpcTransport

            self._transport = GrpcTransport(parsed, tls, key, max_answer_bytes)
        else:
            from mnist_client.http_transport import HttpTransport

            self._transport = HttpTransport(parsed, tls, key, connections, max_answer_bytes)

    def predict(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Prediction:
        """Classify one image; `images.payload_of` says what an image can be.

        With `explain` the result has the steps from a picture to what the model sees.
        """
        payload = payload_of(image)
        call = self._defaults.predict((payload,), model, version, explain)
        return self._run(call, timeout)[0]

    @overload
    def predict_many(
        self,
        images: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> Iterator[Prediction]: ...
    @overload
    def predict_many(
        self,
        images: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Literal["return"],
        timeout: float | None = None,
    ) -> Iterator[Prediction | ClientError]: ...
    def predict_many(
        self,
        images: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Errors = "raise",
        timeout: float | None = None,
    ) -> Iterator[Prediction | ClientError]:
        """Classify images as they come, in their order: one prediction per image.

        Pixels (784 bytes, or an array [28,28]) share requests of up to `batch_size` images; every
        picture has its own. At most `concurrency` requests are under way, so no more than
        `concurrency` + 1 batches are held, however many images there are. `timeout` is that of each
        request. With errors="return", an error takes the place of each prediction that failed, and
        the rest continues.
        """
        check_concurrency(concurrency)
        grouper = Grouper(batch_size)

        def run(payloads: tuple[Payload, ...]) -> list[Prediction]:
            return self._run(self._defaults.predict(payloads, model, version), timeout)

        def jobs() -> Iterator[_Job[Prediction]]:
            for image in images:
                for group in grouper.add(payload_or_error(image)):
                    yield _job(group, run)
            for group in grouper.rest():
                yield _job(group, run)

        return _in_order(jobs(), concurrency, errors)

    def read(
        self,
        picture: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Read all digits on a picture."""
        payload = payload_of(picture, as_picture=True)
        return self._run(self._defaults.read(payload, model, version), timeout)

    @overload
    def read_many(
        self,
        pictures: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> Iterator[Reading]: ...
    @overload
    def read_many(
        self,
        pictures: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Literal["return"],
        timeout: float | None = None,
    ) -> Iterator[Reading | ClientError]: ...
    def read_many(
        self,
        pictures: Iterable[Image],
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Errors = "raise",
        timeout: float | None = None,
    ) -> Iterator[Reading | ClientError]:
        """Read pictures as they come, in their order, as `predict_many` does."""
        check_concurrency(concurrency)

        def run(payloads: tuple[Payload, ...]) -> list[Reading]:
            return [self._run(self._defaults.read(payloads[0], model, version), timeout)]

        def jobs() -> Iterator[_Job[Reading]]:
            for picture in pictures:
                payload = payload_or_error(picture, as_picture=True)
                yield _job(payload if isinstance(payload, InvalidImage) else (payload,), run)

        return _in_order(jobs(), concurrency, errors)

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether the server answers and takes requests. It asks once, and never raises."""
        try:
            return self._run(Ready(), timeout, NO_RETRIES)
        except (Unreachable, DeadlineExceeded) as error:
            return Health(live=False, ready=False, reason=str(error))
        except ClientError as error:
            return Health(live=True, ready=False, reason=str(error))

    def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return self._run(DescribeServer(), timeout)

    def model_metadata(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ModelMetadata:
        """Versions, tensors and properties of a model."""
        return self._run(self._defaults.describe_model(model, version), timeout)

    def close(self) -> None:
        """Close all connections; no call may follow."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, call: Call[T], timeout: float | None, retries: Retries | None = None) -> T:
        attempts = self._defaults.attempts(timeout, retries)
        while True:
            try:
                return self._transport.send(call, attempts.remaining())
            except ClientError as error:
                wait = attempts.wait_after(error)
            time.sleep(wait)


def _job(group: Group, run: Callable[[tuple[Payload, ...]], list[T]]) -> _Job[T]:
    """A job that returns one outcome for each image of a group."""

    def outcomes() -> list[T | ClientError]:
        if isinstance(group, InvalidImage):
            return [group]
        try:
            return [*run(group)]
        except ClientError as error:
            return [error] * len(group)

    return outcomes


def _in_order(
    jobs: Iterator[_Job[T]], concurrency: int, errors: Errors
) -> Iterator[T | ClientError]:
    """Run jobs in threads, at most `concurrency` at once; their outcomes, in order."""
    under_way: deque[Future[list[T | ClientError]]] = deque()
    pool = ThreadPoolExecutor(concurrency, "mnist-client")
    try:
        for job in jobs:
            under_way.append(pool.submit(job))
            while under_way and (under_way[0].done() or len(under_way) == concurrency):
                yield from raised(under_way.popleft().result(), errors)
        while under_way:
            yield from raised(under_way.popleft().result(), errors)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def raised(outcomes: list[T | ClientError], errors: Errors) -> Iterator[T | ClientError]:
    """The outcomes; with errors="raise", an error is raised in its place."""
    for outcome in outcomes:
        if errors == "raise" and isinstance(outcome, ClientError):
            raise outcome
        yield outcome
