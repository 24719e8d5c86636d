"""Decompresses request bodies and compresses response bodies, with gzip or deflate.

Source: RFC 9110, 8.4 (Content-Encoding) and 12.5.3 (Accept-Encoding).
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from functools import partial

from service.core.budget import Budget
from service.core.errors import UnsupportedMediaType, excerpt
from service.core.inflation import MAX_RATIO, WINDOW_BITS, inflate
from service.http.message import HttpRequest, HttpResponse

_PREFERENCE = ("gzip", "deflate")  # the first one wins where the client has no preference
# Compressing a body up to this size takes less time than handing it to a thread.
_INLINE_BYTES = 16 * 1024
_FASTEST_LEVEL = 1
_LONGEST_HEADER = 1024
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?", re.ASCII)


class Compression:
    """Undoes and applies content encodings; slow work runs in a thread."""

    def __init__(self, max_request_bytes: int, min_response_bytes: int, budget: Budget) -> None:
        self._max_request_bytes = max_request_bytes
        self._budget = budget
        self.min_bytes = min_response_bytes

    async def decode(self, request: HttpRequest) -> HttpRequest:
        """The request with its body decompressed, which is claimed until this task ends.

        Raises UnsupportedMediaType for an unknown encoding, RequestTooLarge for a body that
        inflates past the limit, InvalidArgument for a damaged body, InFlightLimit if there is no
        room for it.
        """
        encoding = (request.header("content-encoding") or "identity").strip().lower()
        if encoding == "identity":
            return request
        if encoding not in WINDOW_BITS:
            raise UnsupportedMediaType(
                f"Content-Encoding is '{excerpt(encoding)}'; send gzip, deflate or no encoding."
            )
        # It may become as large as the limit, or as zlib can make it.
        most = min(self._max_request_bytes, len(request.body) * MAX_RATIO)
        claim = await self._budget.room(most, "http")
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: claim.close())
        # The compressed size does not tell how long this takes, so it always runs in a thread.
        work = partial(inflate, request.body, encoding, self._max_request_bytes)
        body = await _in_thread(work)
        claim.complete(len(body))
        return request._replace(body=body)

    async def encode(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """The response, compressed if the client accepts an encoding.

        Below `min_bytes` compression does not pay; the caller checks that.
        """
        response.headers.append(("vary", "accept-encoding"))
        encoding = _choose(request.header("accept-encoding") or "")
        if not encoding:
            return response
        response.headers.append(("content-encoding", encoding))
        work = partial(_deflate, response.body, encoding)
        small = len(response.body) <= _INLINE_BYTES
        return response._replace(body=work() if small else await _in_thread(work))


async def _in_thread(work: Callable[[], bytes]) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _deflate(body: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(_FASTEST_LEVEL, wbits=WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()


def _choose(accepted: str) -> str:
    """The encoding for a response, by the request's Accept-Encoding header; empty for none."""
    weights: dict[str, float] = {}
    # A header may have 400 KB, which would take 80 ms.
    for part in accepted[:_LONGEST_HEADER].lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.strip().removeprefix("q=")
        weights[name.strip()] = float(weight) if _WEIGHT.fullmatch(weight) else 1.0
    best = max(_PREFERENCE, key=lambda encoding: weights.get(encoding, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) else ""
