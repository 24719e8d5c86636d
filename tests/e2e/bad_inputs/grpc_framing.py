"""gRPC and HTTP/2 themselves: messages, flags, lengths, headers, timeouts, frames.

Sources: gRPC over HTTP2 (PROTOCOL-HTTP2.md), gRPC's compression.md and statuscodes.md; RFC 9113.
"""

from __future__ import annotations

import gzip
import zlib

from tritonclient.grpc import service_pb2 as pb

from service.grpc.http2 import frames as wire
from tests.e2e.bad_inputs.case import INFERENCE, Frames, Grpc, framed
from tests.service.grpc.http2.client import literal_block

INFER, STREAM = f"{INFERENCE}/ModelInfer", f"{INFERENCE}/ModelStreamInfer"
LIVE, LOAD = f"{INFERENCE}/ServerLive", f"{INFERENCE}/RepositoryModelLoad"
PREDICT = "/digits.v1.DigitClassifier/Predict"
VALID = pb.ModelInferRequest(
    model_name="mnist",
    inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}],
    raw_input_contents=[bytes(784)],
).SerializeToString()


def parsed(name: str, content: bytes, path: str = INFER) -> Grpc:
    """A message that protobuf cannot parse."""
    return Grpc(f"message {name}", path, [framed(content)], "INVALID_ARGUMENT", "message")


MESSAGES = [
    parsed("cut in a field", VALID[:-1]),
    parsed("cut in a key", b"\x0a"),
    parsed("cut in a length", b"\x0a\xff"),
    parsed("with a field past its end", b"\x0a\x7fmnist"),
    parsed("with a field of 2^63 bytes", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    parsed("of field 0", b"\x02\x00"),
    parsed("with wire type 6", b"\x0e\x00"),
    parsed("with wire type 7", b"\x0f\x00"),
    parsed("with a varint of 11 bytes", b"\x08" + b"\xff" * 10 + b"\x01"),
    parsed("with a group that does not end", b"\x0b\x08\x01"),
    parsed("with an end without a group", b"\x0c"),
    parsed("with 200 groups in each other", b"\x0b" * 200 + b"\x0c" * 200),
    parsed("with a name that is not UTF-8", b"\x0a\x01\xff"),
    parsed("with an input that is cut", b"\x2a\x03\x0a\x05a"),
    parsed("of text", b"model_name: mnist"),
    parsed("of JSON", b'{"model_name": "mnist"}'),
    parsed("of ones", b"\xff" * 100),
    parsed("of Predict with a name that is not UTF-8", b"\x0a\x01\xff", PREDICT),
    parsed("of Predict of ones", b"\xff" * 100, PREDICT),
    parsed("of ServerLive of ones", b"\xff" * 100, LIVE),
    parsed("of load of ones", b"\xff" * 100, LOAD),
    parsed("of Health of ones", b"\xff" * 100, "/grpc.health.v1.Health/Check"),
]


def sent(
    name: str, code: str, words: str, *data: bytes, fronts: str = "own", **headers: str | None
) -> Grpc:
    """A call with these DATA frames and changed headers."""
    changed = {key.replace("_", "-"): value for key, value in headers.items()}
    return Grpc(name, INFER, data, code, words, changed, fronts)


ZIPPED = gzip.compress(VALID, mtime=0)
LARGE = bytes((8 << 20) + (64 << 10) + 1)
PREFIXES = [
    sent("no message", "INTERNAL", "message"),
    sent("half of a prefix", "INTERNAL", "message", b"\0\0"),
    sent("length too large by one", "INTERNAL", "message", framed(VALID, 0, len(VALID) + 1)),
    sent("length too small by one", "INTERNAL", "message", framed(VALID, 0, len(VALID) - 1)),
    sent("two messages in a unary call", "INTERNAL", "message", framed(VALID), framed(VALID)),
    sent(
        "length of 4 GB", "RESOURCE_EXHAUSTED", "larger", framed(VALID, 0, 2**32 - 1), fronts="own"
    ),
    sent(
        "message above max_request_bytes",
        "INVALID_ARGUMENT",
        "max_request_bytes",
        framed(LARGE),
        fronts="both",
    ),
    sent("flag 1 without grpc-encoding", "INTERNAL", "grpc-encoding", framed(VALID, 1)),
    sent(
        "flag 1 with grpc-encoding identity",
        "INTERNAL",
        "grpc-encoding",
        framed(VALID, 1),
        grpc_encoding="identity",
    ),
    sent("flag 2", "INTERNAL", "compressed", framed(VALID, 2)),
    sent("flag 255", "INTERNAL", "compressed", framed(VALID, 255), grpc_encoding="gzip"),
    sent("grpc-encoding unknown", "UNIMPLEMENTED", "'br'", framed(VALID, 1), grpc_encoding="br"),
    sent(
        "grpc-encoding snappy",
        "UNIMPLEMENTED",
        "'snappy'",
        framed(VALID, 1),
        grpc_encoding="snappy",
    ),
    sent(
        "gzip message that is plain",
        "INVALID_ARGUMENT",
        "gzip",
        framed(VALID, 1),
        grpc_encoding="gzip",
    ),
    sent(
        "gzip message cut short",
        "INVALID_ARGUMENT",
        "gzip",
        framed(ZIPPED[:-9], 1),
        grpc_encoding="gzip",
    ),
    sent(
        "gzip message as deflate",
        "INVALID_ARGUMENT",
        "deflate",
        framed(ZIPPED, 1),
        grpc_encoding="deflate",
    ),
    sent(
        "gzip message that inflates to 100 MB",
        "INVALID_ARGUMENT",
        "decompressed",
        framed(gzip.compress(bytes(100_000_000), 9, mtime=0), 1),
        grpc_encoding="gzip",
    ),
    sent(
        "deflate message of ones",
        "INVALID_ARGUMENT",
        "ModelInferRequest",
        framed(zlib.compress(b"\xff" * 50), 1),
        grpc_encoding="deflate",
    ),
]


def timed(name: str, timeout: str, code: str = "INTERNAL", words: str = "grpc-timeout") -> Grpc:
    return sent(f"grpc-timeout {name}", code, words, framed(VALID), grpc_timeout=timeout)


HEADERS = [
    timed("empty", ""),
    timed("without a unit", "1"),
    timed("without a number", "S"),
    timed("of 9 digits", "123456789S"),
    timed("negative", "-1S"),
    timed("fraction", "1.5S"),
    timed("with a space", "1 S"),
    timed("of an unknown unit", "1s"),
    timed("of Arabic digits", "\u0661S".encode().decode("latin-1")),
    timed("text", "soon"),
    timed("of 0", "0S", "DEADLINE_EXCEEDED", "deadline"),
    timed("of 1 ns", "1n", "DEADLINE_EXCEEDED", "deadline"),
    sent(
        "metadata of 17 KB", "RESOURCE_EXHAUSTED", "metadata", framed(VALID), x_large="m" * 17_000
    ),
    *(
        Grpc(f"method {name}", path, [framed(VALID)], "UNIMPLEMENTED", words, fronts=fronts)
        for name, path, words, fronts in (
            ("unknown", f"{INFERENCE}/ModelTrain", "ModelTrain", "own"),
            ("in lower case", f"{INFERENCE}/modelinfer", "modelinfer", "own"),
            ("of an unknown service", "/inference.Other/ModelInfer", "Other", "own"),
            (
                "of a service without its package",
                "/GRPCInferenceService/ModelInfer",
                "method",
                "own",
            ),
            ("without a service", "/ModelInfer", "ModelInfer", "own"),
            ("empty", "/", "method", "own"),
            ("of two slashes", f"/{INFER}", "method", "own"),
            ("with a slash at its end", f"{INFER}/", "method", "own"),
            ("with a query", f"{INFER}?a=b", "method", "own"),
            ("of HTTP", "/v2/models/mnist/infer", "infer", "own"),
        )
    ),
]

REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": LIVE,
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}


def opened(*more: tuple[str, str], without: str = "", flags: int = 0, **changed: str) -> bytes:
    """HEADERS of stream 1 with further fields, and some changed or left out."""
    fields = {key: value for key, value in REQUEST.items() if key != without}
    fields |= {key.replace("_", "-"): value for key, value in changed.items()}
    block = literal_block([*fields.items(), *more])
    return wire.frame(wire.HEADERS, wire.END_HEADERS | flags, 1, block)


def raw(fields: list[tuple[str, str]]) -> bytes:
    return wire.frame(wire.HEADERS, wire.END_HEADERS, 1, literal_block(fields))


PROTOCOL, FLOW, SIZE = wire.PROTOCOL_ERROR, wire.FLOW_CONTROL_ERROR, wire.FRAME_SIZE_ERROR
REQUESTS = [
    Frames("content-type missing", opened(without="content-type"), "http 415"),
    Frames("content-type text/html", opened(content_type="text/html"), "http 415"),
    Frames("content-type JSON", opened(content_type="application/json"), "http 415"),
    Frames("content-type grpc+json", opened(content_type="application/grpc+json"), "http 415"),
    Frames("content-type grpc-web", opened(content_type="application/grpc-web"), "http 415"),
    Frames("content-type grpcx", opened(content_type="application/grpcx"), "http 415"),
    Frames(
        "method GET",
        raw([(k, "GET" if k == ":method" else v) for k, v in REQUEST.items()]),
        "http 405",
    ),
    Frames(
        "method PUT",
        raw([(k, "PUT" if k == ":method" else v) for k, v in REQUEST.items()]),
        "http 405",
    ),
    Frames("pseudo-header :path missing", opened(without=":path"), f"reset {PROTOCOL}"),
    Frames("pseudo-header :method missing", opened(without=":method"), f"reset {PROTOCOL}"),
    Frames("pseudo-header :scheme missing", opened(without=":scheme"), f"reset {PROTOCOL}"),
    Frames("pseudo-header after the others", opened((":authority", "a")), f"reset {PROTOCOL}"),
    Frames(
        "pseudo-header twice",
        raw([*list(REQUEST.items())[:1], *REQUEST.items()]),
        f"reset {PROTOCOL}",
    ),
    Frames(
        "pseudo-header unknown", raw([(":protocol", "x"), *REQUEST.items()]), f"reset {PROTOCOL}"
    ),
    Frames(
        "pseudo-header of an answer",
        raw([(":status", "200"), *REQUEST.items()]),
        f"reset {PROTOCOL}",
    ),
    Frames("header in upper case", opened(("X-Upper", "a")), f"reset {PROTOCOL}"),
    Frames("header name empty", opened(("", "a")), f"reset {PROTOCOL}"),
    Frames("header name with a space", opened(("a b", "c")), f"reset {PROTOCOL}"),
    Frames("header value with a newline", opened(("a", "b\nc")), f"reset {PROTOCOL}"),
    Frames("header value with a zero byte", opened(("a", "b\0c")), f"reset {PROTOCOL}"),
    Frames("header Connection", opened(("connection", "close")), f"reset {PROTOCOL}"),
    Frames("header Keep-Alive", opened(("keep-alive", "5")), f"reset {PROTOCOL}"),
    Frames(
        "header Transfer-Encoding", opened(("transfer-encoding", "chunked")), f"reset {PROTOCOL}"
    ),
    Frames("header Upgrade", opened(("upgrade", "websocket")), f"reset {PROTOCOL}"),
    Frames("header TE of gzip", opened(te="gzip"), f"reset {PROTOCOL}"),
    Frames("content-length text", opened(("content-length", "x")), f"reset {PROTOCOL}"),
    Frames("content-length negative", opened(("content-length", "-1")), f"reset {PROTOCOL}"),
    Frames(
        "content-length too small",
        opened(("content-length", "4")) + wire.frame(wire.DATA, 1, 1, bytes(5)),
        f"reset {PROTOCOL}",
    ),
    Frames(
        "content-length too large",
        opened(("content-length", "6")) + wire.frame(wire.DATA, 1, 1, bytes(5)),
        f"reset {PROTOCOL}",
    ),
    Frames("headers twice in a request", opened() + opened(), f"reset {PROTOCOL}"),
    Frames(
        "window of a stream too large", opened() + wire.window_update(1, 2**31 - 1), f"reset {FLOW}"
    ),
    Frames("window update of zero", opened() + wire.window_update(1, 0), f"reset {PROTOCOL}"),
    Frames(
        "PRIORITY of 4 bytes", opened() + wire.frame(wire.PRIORITY, 0, 1, bytes(4)), f"reset {SIZE}"
    ),
]


def ends(name: str, content: bytes, code: int = PROTOCOL) -> Frames:
    """Frames that break HTTP/2 for the whole connection."""
    return Frames(name, content, f"goaway {code}")


CONNECTION = [
    ends(
        "frame above SETTINGS_MAX_FRAME_SIZE", wire.FRAME_HEADER.pack(0xFFFF, 0xFF, 0, 0, 1), SIZE
    ),
    ends("DATA of no stream", wire.frame(wire.DATA, 0, 0, b"x")),
    ends("DATA of a stream never opened", wire.frame(wire.DATA, 0, 1, b"x")),
    ends("DATA shorter than its padding", opened() + wire.frame(wire.DATA, 8, 1, b"\x09a")),
    ends(
        "HEADERS of no stream", wire.frame(wire.HEADERS, 4, 0, literal_block(list(REQUEST.items())))
    ),
    ends(
        "HEADERS of an even stream",
        wire.frame(wire.HEADERS, 4, 2, literal_block(list(REQUEST.items()))),
    ),
    ends(
        "HEADERS of a block that is cut",
        wire.frame(wire.HEADERS, 4, 1, b"\x40"),
        wire.COMPRESSION_ERROR,
    ),
    ends(
        "HEADERS of an unknown index",
        wire.frame(wire.HEADERS, 4, 1, b"\xff\x7f"),
        wire.COMPRESSION_ERROR,
    ),
    ends(
        "HEADERS of a table too large",
        wire.frame(wire.HEADERS, 4, 1, b"\x3f\xff\xff\x7f"),
        wire.COMPRESSION_ERROR,
    ),
    ends(
        "HEADERS interrupted",
        wire.frame(wire.HEADERS, 0, 1, b"") + wire.frame(wire.PING, 0, 0, bytes(8)),
    ),
    ends("HEADERS shorter than their priority", wire.frame(wire.HEADERS, 0x24, 1, bytes(4)), SIZE),
    ends("CONTINUATION without headers", wire.frame(wire.CONTINUATION, 4, 1)),
    ends("RST_STREAM of no stream", wire.reset(0, 8)),
    ends("RST_STREAM of a stream never opened", wire.reset(1, 8)),
    ends("RST_STREAM of 3 bytes", opened() + wire.frame(wire.RST_STREAM, 0, 1, bytes(3)), SIZE),
    ends("SETTINGS of a stream", wire.frame(wire.SETTINGS, 0, 1)),
    ends("SETTINGS of 5 bytes", wire.frame(wire.SETTINGS, 0, 0, bytes(5)), SIZE),
    ends("SETTINGS with ACK and values", wire.frame(wire.SETTINGS, 1, 0, bytes(6)), SIZE),
    ends("SETTINGS of a window too large", wire.settings({wire.INITIAL_WINDOW_SIZE: 2**31}), FLOW),
    ends("SETTINGS of frames too small", wire.settings({wire.MAX_FRAME_SIZE: 16_383})),
    ends("SETTINGS of frames too large", wire.settings({wire.MAX_FRAME_SIZE: 2**24})),
    ends("SETTINGS of push 2", wire.settings({wire.ENABLE_PUSH: 2})),
    ends("PUSH_PROMISE of a client", wire.frame(wire.PUSH_PROMISE, 4, 1, bytes(4))),
    ends("PING of a stream", wire.frame(wire.PING, 0, 1, bytes(8))),
    ends("PING of 7 bytes", wire.frame(wire.PING, 0, 0, bytes(7)), SIZE),
    ends("GOAWAY of a stream", wire.frame(wire.GOAWAY, 0, 1, bytes(8))),
    ends("GOAWAY of 7 bytes", wire.frame(wire.GOAWAY, 0, 0, bytes(7)), SIZE),
    ends("WINDOW_UPDATE of zero", wire.window_update(0, 0)),
    ends("WINDOW_UPDATE of 3 bytes", wire.frame(wire.WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    ends("WINDOW_UPDATE of a stream never opened", wire.window_update(1, 1)),
    ends("WINDOW_UPDATE past the largest window", wire.window_update(0, 2**31 - 1), FLOW),
    ends("PRIORITY of no stream", wire.frame(wire.PRIORITY, 0, 0, bytes(5))),
    ends(
        "metadata above the hard limit",
        wire.frame(wire.HEADERS, 0, 1, b"")
        + b"".join(wire.frame(wire.CONTINUATION, 0, 1, bytes(16_000)) for _ in range(9)),
        wire.ENHANCE_YOUR_CALM,
    ),
]


def streamed(name: str, message: bytes, words: str, prefix: bytes = b"") -> Grpc:
    """A stream whose only message fails: the stream itself ends with OK."""
    return Grpc(f"stream with {name}", STREAM, [framed(message)], "OK", words)


STREAMS = [
    streamed("a message of ones", b"\xff" * 9, "ModelInferRequest"),
    streamed(
        "an unknown model", pb.ModelInferRequest(model_name="none").SerializeToString(), "'none'"
    ),
    streamed("no inputs", pb.ModelInferRequest(model_name="mnist").SerializeToString(), "'image'"),
    Grpc(
        "stream that ends inside a message",
        STREAM,
        [framed(VALID, 0, len(VALID) + 1)],
        "INTERNAL",
        "message",
        fronts="own",
    ),
    Grpc(
        "stream with errors that end it",
        STREAM,
        [framed(b"\xff" * 9)],
        "INVALID_ARGUMENT",
        "message",
        {"triton_grpc_error": "true"},
    ),
]

GRPC: list[Grpc] = [*MESSAGES, *PREFIXES, *HEADERS, *STREAMS]
FRAMES: list[Frames] = [*REQUESTS, *CONNECTION]
