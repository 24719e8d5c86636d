"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Literal, Protocol, Self, TypeAlias, TypeVar, overload

from mnist_client.address import TLS
from mnist_client.batching import Errors, Group, Grouper, check_concurrency, payload_or_error
from mnist_client.calls import Call, DescribeServer, Ready
from mnist_client.client import (
    DEFAULT_ADDRESS,
    DEFAULT_MAX_ANSWER_BYTES,
    DEFAULT_TIMEOUT_S,
    NO_RETRIES,
    Defaults,
    raised,
)
from mnist_client.errors import ClientError, DeadlineExceeded, InvalidImage, Unreachable
from mnist_client.grpc_transport import AsyncGrpcTransport
from mnist_client.http_transport import AsyncHttpTransport
from mnist_client.images import Image, Payload
from mnist_client.results import Health, ModelMetadata, Prediction, Reading, ServerMetadata
from mnist_client.retries import Retries

T = TypeVar("T")
Images: TypeAlias = Iterable[Image] | AsyncIterable[Image]
_RETRIES = Retries()


class _Transport(Protocol):
    async def send(self, call: Call[T], timeout: float) -> T: ...

    async def close(self) -> None: ...


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, from one event loop.

    Files are read and PIL images encoded in threads.
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
        self._transport: _Transport = (
            AsyncGrpcTransport(parsed, tls, key, max_answer_bytes)
            if parsed.is_grpc
            else AsyncHttpTransport(parsed, tls, key, connections, max_answer_bytes)
        )

    async def predict(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Prediction:
        """Classify one image, as `Client.predict` does."""
        payload = await _payload(image)
        if isinstance(payload, InvalidImage):
            raise payload
        call = self._defaults.predict((payload,), model, version, explain)
        return (await self._run(call, timeout))[0]

    @overload
    def predict_many(
        self,
        images: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> AsyncIterator[Prediction]: ...
    @overload
    def predict_many(
        self,
        images: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Literal["return"],
        timeout: float | None = None,
    ) -> AsyncIterator[Prediction | ClientError]: ...
    def predict_many(
        self,
        images: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        errors: Errors = "raise",
        timeout: float | None = None,
    ) -> AsyncIterator[Prediction | ClientError]:
        """Classify images as they come, as `Client.predict_many` does."""
        check_concurrency(concurrency)
        grouper = Grouper(batch_size)

        async def run(payloads: tuple[Payload, ...]) -> list[Prediction]:
            return await self._run(self._defaults.predict(payloads, model, version), timeout)

        async def jobs() -> AsyncIterator[_Job[Prediction]]:
            async for image in _each(images):
                for group in grouper.add(await _payload(image)):
                    yield _job(group, run)
            for group in grouper.rest():
                yield _job(group, run)

        return _in_order(jobs(), concurrency, errors)

    async def read(
        self,
        picture: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Reading:
        """Read all digits on a picture."""
        payload = await _payload(picture, as_picture=True)
        if isinstance(payload, InvalidImage):
            raise payload
        return await self._run(self._defaults.read(payload, model, version), timeout)

    @overload
    def read_many(
        self,
        pictures: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Literal["raise"] = "raise",
        timeout: float | None = None,
    ) -> AsyncIterator[Reading]: ...
    @overload
    def read_many(
        self,
        pictures: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Literal["return"],
        timeout: float | None = None,
    ) -> AsyncIterator[Reading | ClientError]: ...
    def read_many(
        self,
        pictures: Images,
        *,
        model: str | None = None,
        version: str | None = None,
        concurrency: int = 4,
        errors: Errors = "raise",
        timeout: float | None = None,
    ) -> AsyncIterator[Reading | ClientError]:
        """Read pictures as they come, in their order, as `predict_many` does."""
        check_concurrency(concurrency)

        async def run(payloads: tuple[Payload, ...]) -> list[Reading]:
            return [await self._run(self._defaults.read(payloads[0], model, version), timeout)]

        async def jobs() -> AsyncIterator[_Job[Reading]]:
            async for picture in _each(pictures):
                payload = await _payload(picture, as_picture=True)
                yield _job(payload if isinstance(payload, InvalidImage) else (payload,), run)

        return _in_order(jobs(), concurrency, errors)

    async def health(self, *, timeout: float | None = None) -> Health:
        """Whether the server answers and takes requests. It asks once, and never raises."""
        try:
            return await self._run(Ready(), timeout, NO_RETRIES)
        except (Unreachable, DeadlineExceeded) as error:
            return Health(live=False, ready=False, reason=str(error))
        except ClientError as error:
            return Health(live=True, ready=False, reason=str(error))

    async def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return await self._run(DescribeServer(), timeout)

    async def model_metadata(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ModelMetadata:
        """Versions, tensors and properties of a model."""
        return await self._run(self._defaults.describe_model(model, version), timeout)

    async def close(self) -> None:
        """Close all connections; no call may follow."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _run(self, call: Call[T], timeout: float | None, retries: Retries | None = None) -> T:
        attempts = self._defaults.attempts(timeout, retries)
        while True:
            try:
                return await self._transport.send(call, attempts.remaining())
            except ClientError as error:
                wait = attempts.wait_after(error)
            await asyncio.sleep(wait)


# A request of `predict_many` or `read_many`; it raises nothing of ours.
_Job: TypeAlias = Callable[[], Coroutine[Any, Any, list[T | ClientError]]]


def _job(
    group: Group, run: Callable[[tuple[Payload, ...]], Coroutine[Any, Any, list[T]]]
) -> _Job[T]:
    async def outcomes() -> list[T | ClientError]:
        if isinstance(group, InvalidImage):
            return [group]
        try:
            return [*await run(group)]
        except ClientError as error:
            return [error] * len(group)

    return outcomes


async def _in_order(
    jobs: AsyncIterator[_Job[T]], concurrency: int, errors: Errors
) -> AsyncIterator[T | ClientError]:
    """Run jobs as tasks, at most `concurrency` at once; their outcomes, in order."""
    under_way: deque[asyncio.Task[list[T | ClientError]]] = deque()
    try:
        async for job in jobs:
            under_way.append(asyncio.create_task(job()))
            while under_way and (under_way[0].done() or len(under_way) == concurrency):
                for outcome in raised(await under_way.popleft(), errors):
                    yield outcome
        while under_way:
            for outcome in raised(await under_way.popleft(), errors):
                yield outcome
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _each(images: Images) -> AsyncIterator[Image]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _payload(image: Image, *, as_picture: bool = False) -> Payload | InvalidImage:
    if isinstance(image, (bytes, bytearray)) or getattr(image, "shape", None) == (28, 28):
        return payload_or_error(image, as_picture=as_picture)
    return await asyncio.to_thread(payload_or_error, image, as_picture=as_picture)
