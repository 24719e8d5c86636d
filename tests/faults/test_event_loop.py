"""The event loop is not held by the worst requests, nor by a log pipe without a reader."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import grpc

from benchmarks.load.abusive_bodies import grpc_abuses, http_abuses
from tests.conftest import SHIPPED_MODELS, Server, free_ports

BLANK = bytes(784)


def in_two_threads(work: Callable[[], None]) -> None:
    """Run `work` twice at once; raises what one of them raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_the_worst_requests_get_their_answers_and_others_are_served(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    workers = server.worker_pids()
    answers: dict[str, tuple[object, object]] = {}
    over_http, over_grpc, lock = http_abuses(), grpc_abuses(), threading.Lock()

    def send_http() -> None:
        while True:
            with lock:
                abuse = next(over_http, None)
            if abuse is None:
                return
            status, _ = server.post(abuse.path, abuse.body, abuse.content_type)
            answers[abuse.name] = (status, abuse.status)
            assert server.get("/v2/health/ready")[0] == 200

    def send_grpc() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while True:
                with lock:
                    abuse = next(over_grpc, None)
                if abuse is None:
                    return
                try:
                    infer(abuse.message, timeout=300)
                except grpc.RpcError as error:
                    answers[f"gRPC: {abuse.name}"] = (error.code().name, abuse.code)
                assert server.get("/v2/health/ready")[0] == 200

    in_two_threads(send_http)
    in_two_threads(send_grpc)
    # A good request may find the queue full of the images of another.
    wrong = {
        name: (status, deserved)
        for name, (status, deserved) in answers.items()
        if status not in ((200, 503) if deserved == 200 else (deserved,))
    }
    assert wrong == {}
    assert len(answers) > 30
    assert server.worker_pids() == workers
    assert server.post("/predict", BLANK, "application/octet-stream")[0] == 200
    _, metrics = server.get("/metrics")
    assert b'mnist_event_loop_lag_seconds_bucket{le="5.0"}' in metrics


def test_a_log_that_nobody_reads_holds_no_request() -> None:
    """Each of these requests writes a line, 300 KB together; a pipe has room for 64 KB."""
    http_port, grpc_port = free_ports(2)
    reads, writes = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "service.cli", "--models", str(SHIPPED_MODELS)),
            *("--http-port", str(http_port), "--grpc-port", str(grpc_port)),
            *("--log-requests", "all", "--log-format", "json"),
        ],
        stderr=writes,
        stdout=writes,
    )
    os.close(writes)
    count = 1500
    try:
        with os.fdopen(reads, "rb") as log:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", http_port)).close()
                    break
                time.sleep(0.02)
            connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=300)
            for _ in range(count):
                connection.request("GET", "/v2/health/live")
                with connection.getresponse() as response:
                    assert response.status == 200
                    response.read()
            connection.close()
            answered = 0
            while answered < count:
                answered += b"Answered." in log.readline()
            process.terminate()
            log.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
