"""mnist-probe, the health check of a container, against real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.probe import main
from tests.conftest import Server, free_ports


def ports(server: Server) -> list[str]:
    return ["--http-port", str(server.http_port), "--grpc-port", str(server.grpc_port)]


def test_ready_server_passes_on_any_address(server: Server) -> None:
    assert main(ports(server)) == 0
    assert main([*ports(server), "--host", "0.0.0.0"]) == 0


def test_server_without_a_model_fails_with_its_reason(
    start_server: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server(tmp_path, ready=False)
    server.wait_until(lambda: is_live(server))
    assert main(ports(server)) == 1
    assert "mnist" in capsys.readouterr().err.removeprefix("mnist-probe: ")


def is_live(server: Server) -> bool:
    try:
        return server.get("/v2/health/live")[0] == 200
    except OSError:
        return False


def test_missing_server_or_port_fails(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (free,) = free_ports(1)
    assert main(["--http-port", str(free)]) == 1
    assert "is mnist-serve running?" in capsys.readouterr().err
    assert main(["--http-port", str(server.http_port), "--grpc-port", str(free)]) == 1


def test_invalid_settings_have_an_exit_status_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--http-port", "0"]) == 2
    assert "http_port" in capsys.readouterr().err
