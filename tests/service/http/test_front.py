from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from granian.rsgi import ProtocolClosed

from service.access.gate import Gate
from service.access.keys import Key, Keyring, digest_of
from service.access.origins import Origins
from service.core.batching import Batcher
from service.core.budget import Budget
from service.core.callers import Callers
from service.core.errors import Overloaded
from service.http import digits
from service.http.flask_app import create_app
from service.http.front import HttpFront
from tests.service.composition import Operations, http_app_of
from tests.service.linear_model import CallersOf, publish_linear, run_with_operations

LIMIT = 50_000
BUDGET = 100_000
PIXELS = bytes(784)


class Headers(dict[str, str]):
    """Granian's headers."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]] if name in self else []


class RequestScope:
    """What Granian says of a request."""

    query_string, scheme, server, client, authority = "", "http", "127.0.0.1:80", "127.0.0.1:1", ""

    def __init__(self, method: str, path: str, version: str = "1.1", **headers: str) -> None:
        self.method, self.path, self.http_version = method, path, version
        self.headers = Headers({name.replace("_", "-"): text for name, text in headers.items()})


class Protocol:
    """Granian's end of a request: its body in chunks, and the response."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.read = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: Any = None
        self.before_the_end: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0)

    async def __call__(self) -> bytes:
        return b"".join(self.chunks)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk
        await self.before_the_end()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers = status, dict(headers)
        is_json = self.headers.get("content-type") == "application/json"
        self.body = json.loads(body) if is_json else body


class NeverArrives(Protocol):
    async def __call__(self) -> bytes:
        return await asyncio.Event().wait() and b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield await self()


class EndsEarly(Protocol):
    """The client closes its side before the whole body is sent; it may still read."""

    async def __call__(self) -> bytes:
        raise ProtocolClosed


Front = Callable[[RequestScope, Protocol], Awaitable[None]]


def with_front(
    root: Path,
    scenario: Callable[[Front], Awaitable[None]],
    body_timeout: float = 600,
    batcher: type[Batcher] = Batcher,
    origins: Origins | None = None,
    gate: Gate | None = None,
) -> None:
    publish_linear(root, card={"output_kinds": {"scores": "logits"}})

    async def main(operations: Operations) -> None:
        for fast_lane in (True, False):
            app = http_app_of(operations)
            front: Any = HttpFront(
                max_request_bytes=LIMIT,
                body_timeout=body_timeout,
                fast_lane=fast_lane,
                callers=Callers("127.0.0.2"),
                origins=origins,
            )
            budget = Budget(BUDGET)
            flask = create_app(app, asyncio.get_running_loop(), LIMIT, gate)
            front.start(app, flask, budget, gate)
            await scenario(front)
            assert budget.used == 0
            assert not front.in_flight

    run_with_operations(root, main, batcher)


class Refusing(Batcher):
    """A batcher that is overloaded."""

    def early_refusal(self, deadline: float | None, caller: str) -> Overloaded | None:
        return Overloaded.of(f"Too much for {caller}", 2.5)


class NotRead(Protocol):
    """A body that must not be read."""

    async def __call__(self) -> bytes:
        raise AssertionError

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""


def with_overloaded_front(root: Path, scenario: Callable[[Front], Awaitable[None]]) -> None:
    publish_linear(root, card={"output_kinds": {"scores": "logits"}})

    async def main(operations: Operations) -> None:
        batcher = operations.inference.repository.get("linear").batcher
        operations.inference.overloaded = {batcher}
        app = http_app_of(operations)
        front: Any = HttpFront(
            max_request_bytes=1 << 20, body_timeout=600, fast_lane=True, callers=Callers()
        )
        budget = Budget(1 << 20)
        front.start(app, create_app(app, asyncio.get_running_loop(), LIMIT), budget)
        await scenario(front)
        assert budget.used == 0
        assert not front.in_flight

    run_with_operations(root, main, Refusing)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/predict", ""),
        ("/predict", "model=linear"),
        ("/predict", "version=1"),
        ("/read", ""),
        ("/read", "model=linear&version=1"),
        ("/v2/models/linear/infer", ""),
        ("/v2/models/linear/versions/1/infer", ""),
    ],
)
def test_a_request_to_an_overloaded_model_is_refused_before_it_is_decoded(
    tmp_path: Path, path: str, query: str
) -> None:
    async def scenario(front: Front) -> None:
        scope = RequestScope("POST", path, content_length="784", x_request_id="mine")
        scope.query_string = query
        small, large = Protocol(b"not an image" * 20), NotRead()
        await front(scope, small)
        scope.headers["content-length"] = "1000000"
        await front(scope, large)
        chunked = NotRead()
        del scope.headers["content-length"]
        await front(scope, chunked)
        for answer in (small, large, chunked):
            assert answer.status == 503
            assert answer.body == {
                "error": "Too much for 127.0.0.1; the expected wait is 2.5 seconds."
            }
            assert answer.headers["retry-after"] == "3"
            assert answer.headers["x-request-id"] == "mine"

    with_overloaded_front(tmp_path, scenario)


def test_a_request_whose_body_has_arrived_is_refused_without_a_task(tmp_path: Path) -> None:
    async def scenario(front: Any) -> None:
        scope = RequestScope("POST", "/predict", content_length="784", x_request_id="mine")

        def is_refused(body: bytes | None = PIXELS) -> bool:
            answer = Protocol()
            refused = front.refuse_early(scope, answer, body)
            assert refused == (answer.status == 503)
            return bool(refused)

        assert not is_refused()  # nothing is known of this client yet
        first = Protocol(PIXELS)
        await front(scope, first)
        answer = Protocol()
        assert front.refuse_early(scope, answer, PIXELS)
        answer.headers["date"] = first.headers["date"] = ""
        assert (answer.status, answer.headers, answer.body) == (503, first.headers, first.body)
        # What needs another look is left to the call that can wait.
        assert not is_refused(None)
        scope.headers["origin"] = "http://evil.example"
        assert not is_refused()
        del scope.headers["origin"]
        scope.path = "/v2/health/live"
        assert not is_refused()
        scope.path = "/predict"
        front.is_leaving = True
        leaving = Protocol()
        assert front.refuse_early(scope, leaving, PIXELS)
        assert leaving.headers["connection"] == "close"
        front.is_leaving = False
        front._app.overloaded.clear()
        assert not is_refused()

    with_overloaded_front(tmp_path, scenario)


def test_a_small_body_is_read_so_that_its_connection_can_be_used_again(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        with pytest.raises(AssertionError):
            await front(predict(content_length="784"), NotRead())

    with_overloaded_front(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/models/linear", 200),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/linear/versions/9/infer", 404),
        ("POST", "/v2/models/linear/versions/x/infer", 400),
        ("GET", "/nothing", 404),
    ],
)
def test_other_requests_are_answered_while_a_model_is_overloaded(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async def scenario(front: Front) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 784], "data": [0] * 784}
        body = json.dumps({"inputs": [tensor]}).encode() if method == "POST" else b""
        protocol = Protocol(body)
        await front(RequestScope(method, path, content_length=str(len(body))), protocol)
        assert protocol.status == status

    with_overloaded_front(tmp_path, scenario)


def predict(**headers: str) -> RequestScope:
    return RequestScope("POST", "/predict", content_type="application/octet-stream", **headers)


def test_a_body_is_answered_whether_its_length_is_known_or_not(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        whole, chunked = Protocol(PIXELS), Protocol(PIXELS[:500], PIXELS[500:])
        await front(predict(content_length="784"), whole)
        await front(predict(), chunked)
        assert (whole.status, chunked.status) == (200, 200)
        assert whole.body == chunked.body

    with_front(tmp_path, scenario)


def test_every_form_of_inference_has_its_caller(tmp_path: Path) -> None:
    infer = "/v2/models/linear/infer"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 784]}
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 3136}}]}).encode()
    picture = io.BytesIO()
    PIL.Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(picture, "PNG")
    requests: list[tuple[str, dict[str, str], bytes]] = [
        ("/predict", {"content_type": "application/octet-stream"}, PIXELS),
        ("/predict", {"content_type": "application/json"}, json.dumps([0] * 784).encode()),
        ("/predict", {"content_type": "image/png"}, picture.getvalue()),
        (infer, {}, json.dumps({"inputs": [{**tensor, "data": [0] * 784}]}).encode()),
        (infer, {"inference_header_content_length": "0"}, bytes(3136)),
        # Twice: the second time, its header comes from a cache.
        *[(infer, {"inference_header_content_length": str(len(header))}, header + bytes(3136))] * 2,
    ]

    async def scenario(front: Front) -> None:
        for client, forwarded, caller in (
            ("127.0.0.3:5", "198.51.100.7", "127.0.0.3"),
            ("[::1]:5", "198.51.100.7", "::1"),
            ("127.0.0.2:5", "198.51.100.7", "198.51.100.7"),
        ):
            for path, headers, body in requests:
                CallersOf.callers.clear()
                protocol = Protocol(body)
                scope = RequestScope("POST", path, x_forwarded_for=forwarded, **headers)
                scope.client = client
                await front(scope, protocol)
                assert (protocol.status, CallersOf.callers) == (200, [caller]), (path, headers)

    with_front(tmp_path, scenario, batcher=CallersOf)


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol(bytes(LIMIT + 1))
        await front(predict(content_length=str(LIMIT + 1)), protocol)
        assert protocol.status == 413
        assert "max_request_bytes" in protocol.body["error"]
        assert protocol.headers["connection"] == "close"

    with_front(tmp_path, scenario)


def test_a_chunked_body_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol(*[bytes(1000)] * 100)
        await front(predict(), protocol)
        assert protocol.status == 413
        assert protocol.read == LIMIT // 1000 + 1

    with_front(tmp_path, scenario)


def test_http_2_keeps_its_connection_when_a_body_is_refused(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol()
        scope = RequestScope("POST", "/predict", "2", content_length=str(LIMIT + 1))
        await front(scope, protocol)
        assert protocol.status == 413
        assert "connection" not in protocol.headers

    with_front(tmp_path, scenario)


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        protocol = NeverArrives()
        await front(predict(content_length="784"), protocol)
        assert protocol.status == 408
        assert "body_timeout" in protocol.body["error"]

    with_front(tmp_path, scenario, body_timeout=0.01)


def test_each_body_of_a_connection_with_http2_is_claimed_before_it_arrives(tmp_path: Path) -> None:
    async def scenario(front: Any) -> None:
        for headers, size in (({"content_length": "1000"}, 1000), ({}, 16_384)):
            scope = RequestScope("POST", "/predict", "2", **headers)
            waiting = [asyncio.create_task(front(scope, NeverArrives())) for _ in range(3)]
            await asyncio.sleep(0)
            assert front._budget.used == 3 * size
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert front._budget.used == 0

    with_front(tmp_path, scenario)


class Trickles(Protocol):
    """A body that arrives piece by piece and never ends."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.read += 1
            yield b"-"
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("path", ["/predict", "/read"])
def test_a_timeout_counts_while_the_body_arrives(tmp_path: Path, path: str) -> None:
    async def scenario(front: Any) -> None:
        for protocol, headers in (
            (NeverArrives(), {"content_length": "784"}),
            (Trickles(), {"content_length": str(LIMIT)}),
            (Trickles(), {}),
        ):
            scope = RequestScope("POST", path, content_type="image/png", **headers)
            scope.query_string = "version=1&timeout=0.05&model=linear"
            await front(scope, protocol)
            assert protocol.status == 504
            assert "the timeout passed" in protocol.body["error"]
            assert protocol.headers["connection"] == "close"
            assert not front.slow_clients(0)

    with_front(tmp_path, scenario)


class ArrivesLate(Protocol):
    async def __call__(self) -> bytes:
        await asyncio.sleep(0.1)
        return await super().__call__()


def test_the_time_in_which_a_body_arrived_is_part_of_its_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every way to the handler; `within` is given when the headers had arrived."""
    begun: list[float] = []
    original = digits.within

    async def within(timeout: str, answer: Any, arrived: float = 0.0) -> Any:
        begun.append(asyncio.get_running_loop().time() - arrived)
        return await original(timeout, answer, arrived)

    monkeypatch.setattr(digits, "within", within)

    async def scenario(front: Front) -> None:
        scope = predict(content_length="784")
        scope.query_string = "timeout=600"
        protocol = ArrivesLate(PIXELS)
        await front(scope, protocol)
        assert protocol.status == 200

    with_front(tmp_path, scenario)
    assert len(begun) == 2
    assert all(0.09 < seconds < 600 for seconds in begun)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/predict", "timeout=soon"),
        ("/predict", "timeout=0"),
        ("/predict", "timeout=1e9"),
        ("/predict", "no_timeout=1e-9"),
        ("/v2/models/linear/infer", "timeout=1e-9"),
        ("/nothing", "timeout=1e-9"),
    ],
)
def test_what_is_no_timeout_ends_no_body(tmp_path: Path, path: str, query: str) -> None:
    async def scenario(front: Front) -> None:
        scope = RequestScope(
            "POST", path, content_length="784", content_type="application/octet-stream"
        )
        scope.query_string = query
        protocol = ArrivesLate(PIXELS)
        await front(scope, protocol)
        assert protocol.status != 504, protocol.body

    with_front(tmp_path, scenario)


def test_a_slow_body_gives_way_when_its_place_is_needed(tmp_path: Path) -> None:
    async def scenario(front: Any) -> None:
        protocol = NeverArrives()
        request = asyncio.ensure_future(front(predict(content_length="784"), protocol))
        while not front.slow_clients(0):
            await asyncio.sleep(0)
        assert not front.slow_clients(3600)
        front.give_way("127.0.0.1:9")  # another one
        await asyncio.sleep(0)
        assert not request.done()
        for client in front.slow_clients(0):
            front.give_way(client)
            front.give_way(client)
        await request
        assert protocol.status == 503
        assert "max_connections" in protocol.body["error"]
        assert protocol.headers["connection"] == "close"
        assert not front.slow_clients(0)

    with_front(tmp_path, scenario)


def test_a_body_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        for scope, protocol in (
            (predict(content_length="784"), EndsEarly()),
            # Granian: an empty chunk for the error, and one for the end.
            (predict(), Protocol(PIXELS, b"", b"")),
        ):
            await front(scope, protocol)
            assert protocol.status == 400
            assert "cut short" in protocol.body["error"]
            assert protocol.headers["connection"] == "close"

    with_front(tmp_path, scenario)


def test_trailers_and_empty_frames_are_no_errors(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        http_2 = RequestScope("POST", "/predict", "2", content_type="application/octet-stream")
        for scope in (predict(trailer="checksum"), http_2):
            protocol = Protocol(PIXELS, b"", b"")
            await front(scope, protocol)
            assert protocol.status == 200

    with_front(tmp_path, scenario)


def test_bodies_beyond_the_budget_wait_and_are_read_in_their_order(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        first, second, small = (
            Protocol(bytes(49_784 // 784 * 784)),
            Protocol(*[PIXELS] * 60),
            Protocol(PIXELS),
        )
        pause = asyncio.Event()
        first.before_the_end = pause.wait
        reading = asyncio.ensure_future(front(predict(content_length="49392"), first))
        waiting = asyncio.ensure_future(front(predict(content_length=str(60 * 784)), second))
        await front(predict(content_length="784"), small)
        assert small.status == 200
        assert (first.read, second.read) == (1, 0)
        pause.set()
        await asyncio.gather(reading, waiting)
        assert (first.status, second.status) == (200, 200)

    with_front(tmp_path, scenario)


def test_a_body_that_waits_too_long_for_room_is_refused(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        budget = front._budget  # type: ignore[attr-defined]
        blocking = budget.claim(LIMIT, "http", lambda: None, lambda error: None)
        protocol = Protocol(*[PIXELS] * 60)
        waiting = asyncio.ensure_future(front(predict(content_length=str(60 * 784)), protocol))
        while not budget._waiting:
            await asyncio.sleep(0)
        budget._patience = 0.0
        budget.sweep()
        await waiting
        assert (protocol.status, protocol.read) == (503, 0)
        assert "max_inflight_bytes" in protocol.body["error"]
        assert protocol.headers["retry-after"]
        assert protocol.headers["connection"] == "close"
        blocking.close()

    with_front(tmp_path, scenario)


def test_a_body_that_stalls_gives_way_to_one_that_waits(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        budget = front._budget  # type: ignore[attr-defined]
        stalled = Protocol(bytes(20_000))
        stalled.before_the_end = asyncio.Event().wait
        reading = asyncio.ensure_future(front(predict(content_length="50000"), stalled))
        while not stalled.read:
            await asyncio.sleep(0)
        other = Protocol(*[PIXELS] * 60)
        waiting = asyncio.ensure_future(front(predict(content_length=str(60 * 784)), other))
        await asyncio.sleep(0)
        now = budget._clock()
        budget._swept_at = now + 60
        budget._clock = lambda: now + 60
        next(iter(budget._waiting)).since = now + 60
        budget.sweep()
        await asyncio.gather(reading, waiting)
        assert (stalled.status, other.status) == (503, 200)
        assert "too slowly" in stalled.body["error"]

    with_front(tmp_path, scenario)


def test_small_requests_that_exceed_the_budget_are_refused(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        budget = front._budget  # type: ignore[attr-defined]
        budget.used += BUDGET - 700
        protocol = Protocol(PIXELS)
        await front(predict(content_length="784"), protocol)
        assert protocol.status == 503
        budget.used -= BUDGET - 700

    with_front(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("post", "/predict", 501, "There is no method post"),
        ("Get", "/v2", 501, "There is no method Get"),
        ("GET", "//v2", 404, "Nothing is at //v2"),
        ("POST", "///predict", 404, "Nothing is at ///predict"),
    ],
)
def test_a_request_is_not_taken_for_one_that_is_written_otherwise(
    tmp_path: Path, method: str, path: str, status: int, words: str
) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol(PIXELS)
        scope = RequestScope(method, path, content_type="application/octet-stream")
        await front(scope, protocol)
        assert protocol.status == status
        assert words in protocol.body["error"]

    with_front(tmp_path, scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [("GET", "/nowhere", 404, "/nowhere"), ("DELETE", "/predict", 405, "DELETE")],
)
def test_flask_answers_what_matches_no_route(
    tmp_path: Path, method: str, path: str, status: int, sentence: str
) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol()
        await front(RequestScope(method, path, x_request_id="mine"), protocol)
        assert protocol.status == status
        assert sentence in protocol.body["error"]
        assert protocol.headers["x-request-id"] == "mine"
        assert protocol.headers.get("allow", "POST").find("POST") >= 0

    with_front(tmp_path, scenario)


LISTED = "https://app.example"


@pytest.mark.parametrize("path", ["/predict", "/v2", "/nothing", "/v2/health/live"])
def test_a_page_of_another_server_is_refused_on_every_route_without_its_body(
    tmp_path: Path, path: str
) -> None:
    async def scenario(front: Front) -> None:
        for method in ("GET", "POST", "OPTIONS"):
            scope = RequestScope(
                method,
                path,
                host="127.0.0.1",
                origin="http://evil.example",
                content_encoding="no such",
                content_length="784" if method == "POST" else "0",
            )
            protocol = NotRead()
            await front(scope, protocol)
            assert protocol.status == 403
            assert ("connection" in protocol.headers) == (method == "POST")
            assert "evil.example" in protocol.body["error"]
            assert "allowed_origins" in protocol.body["error"]
            assert "access-control-allow-origin" not in protocol.headers
            assert protocol.headers["x-content-type-options"] == "nosniff"

    with_front(tmp_path, scenario, origins=Origins([LISTED]))


@pytest.mark.parametrize(("path", "expected"), [("/predict", 200), ("/nothing", 404)])
def test_a_page_of_a_listed_origin_can_read_its_answers_and_errors(
    tmp_path: Path, path: str, expected: int
) -> None:
    async def scenario(front: Front) -> None:
        octets = "application/octet-stream"
        size = str(len(PIXELS))
        scope = RequestScope("POST", path, origin=LISTED, content_type=octets, content_length=size)
        protocol = Protocol(PIXELS)
        await front(scope, protocol)
        assert protocol.status == expected
        assert protocol.headers["access-control-allow-origin"] == LISTED
        too_large = NotRead()
        await front(RequestScope("POST", path, origin=LISTED, content_length="99999"), too_large)
        assert too_large.status == 413
        assert too_large.headers["access-control-allow-origin"] == LISTED

    with_front(tmp_path, scenario, origins=Origins([LISTED]))


@pytest.mark.parametrize("path", ["/predict", "/v2/repository/models/linear/load", "/nothing"])
def test_a_preflight_of_a_listed_origin_is_answered_for_every_route(
    tmp_path: Path, path: str
) -> None:
    async def scenario(front: Front) -> None:
        scope = RequestScope(
            "OPTIONS",
            path,
            origin=LISTED,
            access_control_request_method="POST",
            access_control_request_headers="content-type,x-api-key",
        )
        protocol = NotRead()
        await front(scope, protocol)
        assert protocol.status == 204
        assert protocol.headers["access-control-allow-origin"] == LISTED
        assert protocol.headers["access-control-allow-headers"] == "content-type,x-api-key"
        assert "POST" in protocol.headers["access-control-allow-methods"]
        assert protocol.headers["vary"] == "origin"

    with_front(tmp_path, scenario, origins=Origins([LISTED]))


def test_every_answer_varies_by_origin_if_origins_are_listed(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        protocol = Protocol()
        await front(RequestScope("GET", "/v2"), protocol)
        assert protocol.headers["vary"] == "origin"

    with_front(tmp_path, scenario, origins=Origins([LISTED]))


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_name_that_is_not_the_servers_is_refused(tmp_path: Path, version: str) -> None:
    async def scenario(front: Front) -> None:
        for host, expected in (("evil.example:8000", 403), ("localhost:8000", 200)):
            scope = RequestScope("GET", "/v2", version)
            if version == "2":
                scope.authority = host
            else:
                scope.headers["host"] = host
            for _ in range(2):
                protocol = Protocol()
                await front(scope, protocol)
                assert protocol.status == expected, protocol.body

    with_front(tmp_path, scenario, origins=Origins(checks_hosts=True))


def test_a_trusted_proxy_may_be_called_by_any_name(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        for client, expected in (("127.0.0.2:1", 200), ("127.0.0.1:1", 403)):
            scope = RequestScope("GET", "/v2", host="mnist.example")
            scope.client = client
            protocol = Protocol()
            await front(scope, protocol)
            assert protocol.status == expected

    with_front(tmp_path, scenario, origins=Origins(checks_hosts=True))


@pytest.mark.parametrize(
    ("path", "by_star"),
    [
        ("/v2/repository/index", 200),
        ("/v2/repository/models/linear/unload", 403),
        ("/v2/repository/models/linear/unload/", 403),
        ("/v2/logging", 403),
    ],
)
def test_a_star_lets_pages_change_nothing(tmp_path: Path, path: str, by_star: int) -> None:
    async def scenario(front: Front) -> None:
        for origin, expected in (("http://evil.example", by_star), (LISTED, 200)):
            protocol = Protocol()
            await front(RequestScope("POST", path, origin=origin, content_length="0"), protocol)
            assert protocol.status == expected, protocol.body

    with_front(tmp_path, scenario, origins=Origins(["*", LISTED]))


def test_a_refused_caller_is_answered_without_its_body(tmp_path: Path) -> None:
    async def scenario(front: Front) -> None:
        cases: tuple[tuple[dict[str, str], bool], ...] = (
            ({"content_length": "784"}, True),
            ({"transfer_encoding": "chunked"}, True),
            ({"content_length": "0"}, False),
            ({}, False),
            ({"content_length": "784", "authorization": "Bearer wrong"}, True),
        )
        for headers, closes in cases:
            protocol = NotRead()
            await front(predict(**headers), protocol)
            assert protocol.status == 401
            assert protocol.headers["www-authenticate"] == "Bearer"
            assert ("connection" in protocol.headers) == closes

    with_front(tmp_path, scenario, gate=Gate(frozenset(), Keyring()))


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_worker_that_leaves_lets_connections_of_http_1_end_with_each_answer(
    tmp_path: Path, version: str
) -> None:
    async def scenario(front: Any) -> None:
        for method, path, chunks, headers, status in (
            ("POST", "/predict", [PIXELS], {"content_length": "784"}, 200),
            ("GET", "/v2/health/live", [], {}, 200),
            ("GET", "/nowhere", [], {"x_api_key": "right"}, 404),
            ("POST", "/predict", [PIXELS], {"content_length": "784", "host": "rebound.org"}, 403),
            ("GET", "/metrics", [], {"x_api_key": "wrong"}, 401),
            ("POST", "/predict", [], {"content_length": str(LIMIT + 1)}, 413),
        ):
            for is_leaving in (False, True):
                front.is_leaving = is_leaving
                protocol = Protocol(*chunks)
                sent = {"content_type": "application/octet-stream"} | headers
                if path == "/predict":
                    sent["x_api_key"] = "right"
                await front(RequestScope(method, path, version, **sent), protocol)
                assert protocol.status == status, path
                # The rest of a body that is not read would follow.
                ends = version == "1.1" and (is_leaving or status in (403, 413))
                assert ("connection" in protocol.headers) is ends, path
        front.is_leaving = False

    keys = Keyring([Key("me", frozenset({"predict"}), None, digest_of("right"))])
    with_front(tmp_path, scenario, origins=Origins(checks_hosts=True), gate=Gate(frozenset(), keys))


def test_a_caller_counts_by_its_key(tmp_path: Path) -> None:
    class Seen(Batcher):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            call = signature(Batcher.submit).bind(self, *arguments, **options)
            callers.append(call.arguments["caller"])
            return super().submit(*arguments, **options)

    callers: list[Any] = []
    keys = Keyring([Key("alice", frozenset({"predict"}), None, digest_of("secret"))])

    async def scenario(front: Front) -> None:
        protocol = Protocol(PIXELS)
        await front(predict(x_api_key="secret"), protocol)
        assert protocol.status == 200, protocol.body

    with_front(tmp_path, scenario, batcher=Seen, gate=Gate(frozenset(), keys))
    assert callers == ["key alice"] * len(callers)
    assert callers
