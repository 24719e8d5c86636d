"""A closed loop over HTTP or gRPC, by the tool that speaks it."""

from __future__ import annotations

from pathlib import Path

from benchmarks import served_models
from benchmarks.check import GRPC_FRAME
from benchmarks.load import h2load, wrk
from benchmarks.load.result import Load
from benchmarks.server_process import Server
from benchmarks.wire_formats import WIRES


def load(
    server: Server,
    wire: str,
    *,
    images: int,
    connections: int,
    streams: int,
    seconds: int,
    answer_bytes: int,
    core: int | None,
    scratch: Path,
) -> Load:
    """Keep connections x streams requests in flight, each with this many images.

    `answer_bytes` is the length of a right answer; it identifies gRPC errors, see h2load.
    Raises GeneratorError.
    """
    contender = server.contender
    body = WIRES[contender.encoding(wire)].encode(served_models.test_images(images))
    body = body._replace(headers=body.headers + server.headers)
    url = server.url(wire)
    if wire == "grpc":
        return h2load.load(
            url,
            body,
            connections=connections,
            streams=streams,
            seconds=seconds,
            answer_bytes=GRPC_FRAME + answer_bytes,
            core=core,
            scratch=scratch,
        )
    return wrk.load(url, body, connections=connections, seconds=seconds, core=core, scratch=scratch)
