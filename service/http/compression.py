"""Compressed bodies: gzip and deflate, in both directions, with a bound on what comes out.

Source: RFC 9110, 8.4 (Content-Encoding) and 12.5.3 (Accept-Encoding); `deflate` is the zlib format
(RFC 1950), as it says there.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from concurrent.futures import Executor

from service.core.errors import InvalidArgument, RequestTooLarge, UnsupportedMediaType
from service.http.message import HttpRequest, HttpResponse

# zlib's window bits, by which it knows the format.
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_ACCEPTABLE = ("gzip", "deflate")  # in the order in which we like them
# A body up to this size is done sooner than a thread is told of it.
_INLINE_BYTES = 16 * 1024
_FASTEST = 1
_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?", re.ASCII)


class Compression:
    """Undoes and applies content encodings; large bodies in a thread, since zlib frees the GIL."""

    def __init__(self, max_request_bytes: int, min_response_bytes: int, executor: Executor) -> None:
        self._max_request_bytes = max_request_bytes
        self._min_response_bytes = min_response_bytes
        self._executor = executor

    async def decoded(self, request: HttpRequest) -> HttpRequest:
        """The request with its body as it was before it was compressed.

        Raises UnsupportedMediaType for another encoding, RequestTooLarge for a body that inflates
        past the limit, InvalidArgument for one that is damaged.
        """
        encoding = (request.header("content-encoding") or "identity").strip().lower()
        if encoding == "identity":
            return request
        if encoding not in _FORMATS:
            raise UnsupportedMediaType(
                f"Content-Encoding is '{encoding}'; send gzip, deflate or no encoding."
            )
        body = request.body
        return request._replace(body=await self._run(len(body), self._inflate, body, encoding))

    async def encode(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """The response, compressed if it is large enough and the caller accepts that."""
        if len(response.body) < self._min_response_bytes:
            return response
        response.headers.append(("vary", "accept-encoding"))
        encoding = _choose(request.header("accept-encoding") or "")
        if not encoding:
            return response
        response.headers.append(("content-encoding", encoding))
        body = await self._run(len(response.body), _deflate, response.body, encoding)
        return response._replace(body=body)

    async def _run(
        self, size: int, work: Callable[[bytes, str], bytes], body: bytes, encoding: str
    ) -> bytes:
        if size <= _INLINE_BYTES and work is _deflate:
            return work(body, encoding)
        # How long inflating takes is not to be seen from outside.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, body, encoding)

    def _inflate(self, body: bytes, encoding: str) -> bytes:
        limit = self._max_request_bytes
        made = bytearray()
        try:
            while body:  # gzip allows several members, one after the other (RFC 1952, 2.2)
                stream = zlib.decompressobj(_FORMATS[encoding])
                made += stream.decompress(body, limit + 1 - len(made))
                if len(made) > limit:
                    raise RequestTooLarge(
                        f"The body is larger than {limit} bytes once decompressed "
                        "(max_request_bytes)."
                    )
                if not stream.eof:
                    raise InvalidArgument(f"The body's {encoding} data ends too early.")
                body = stream.unused_data
        except zlib.error as error:
            raise InvalidArgument(f"The body is not valid {encoding}: {error}.") from None
        return bytes(made)


def _deflate(body: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(_FASTEST, wbits=_FORMATS[encoding])
    return stream.compress(body) + stream.flush()


def _choose(accepted: str) -> str:
    """The encoding to answer with, for an Accept-Encoding header; empty for none."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        weight = parameter.strip().removeprefix("q=")
        weights[name.strip()] = float(weight) if _WEIGHT.fullmatch(weight) else 1.0
    best = max(_ACCEPTABLE, key=lambda encoding: weights.get(encoding, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) else ""
