"""mnist-serve --check: finds each fault of an installation, as its user would run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHIPPED_MODELS, Server, free_ports

# A namespace of its own needs no privilege where users may have one, as root does.
UNSHARE = ("unshare", *(() if os.getuid() == 0 else ("--map-root-user",)))
# Root without what makes it root: as another user, but with the files of this one.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def check(
    *flags: str, prefix: Sequence[str] = (), **environ: str | Path
) -> tuple[int, dict[str, str]]:
    """The exit status, and what is found that is not ok, as `SEVERITY SUBJECT` -> text."""
    http_port, grpc_port = free_ports(2)
    settings = {
        "MNIST_MODELS": str(SHIPPED_MODELS),
        "MNIST_HTTP_PORT": str(http_port),
        "MNIST_GRPC_PORT": str(grpc_port),
        "MNIST_MAX_CONNECTIONS": "64",
        "MNIST_CHECK_SECONDS": "100",  # on a busy machine
    }
    # With other mounts, coverage may not be able to write its file.
    ignored = ("MNIST_", "KUBERNETES_", *(["COV"] if prefix else []))
    others = {n: value for n, value in os.environ.items() if not n.startswith(ignored)}
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "service.cli", "--check", *flags],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=others | settings | {name: str(value) for name, value in environ.items()},
    )
    assert done.stderr == ""
    return done.returncode, found(done.stdout)


def found(output: str) -> dict[str, str]:
    """The findings of a report, without those that are ok."""
    findings: dict[str, str] = {}
    key = ""
    for line in output.splitlines():
        if start := re.match(r"(warning|error|ok) +(\S.*?)(  +(\S.*))?$", line):
            key = f"{start[1]} {start[2]}"
            if len(start[2]) >= 13:  # the text begins below a long subject
                findings[key] = findings.get(key, "")
            else:
                name, text = re.fullmatch(r"(.{13}) (.*)", line[9:]).groups()  # type: ignore[union-attr]
                key = f"{start[1]} {name.strip()}"
                findings[key] = f"{findings.get(key, '')} {text}".strip()
        elif line.startswith(" " * 23):
            findings[key] = f"{findings[key]} {line.strip()}".strip()
        else:
            key = ""
    return {key: text for key, text in findings.items() if not key.startswith("ok ")}


def with_mounts(script: str, *more: str) -> tuple[str, ...]:
    """Run a command where only it sees what a shell script has mounted."""
    return (*UNSHARE, "--mount", *more, "sh", "-c", f'{script} && exec "$@"', "sh")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the newest shipped version of `mnist`."""
    repository = tmp_path / "models"
    newest = max((SHIPPED_MODELS / "mnist").iterdir(), key=lambda folder: int(folder.name))
    shutil.copytree(newest, repository / "mnist" / "1")
    return repository


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_good_installation_has_no_finding() -> None:
    assert check() == (0, {})


def test_models_that_take_longer_than_the_check_may_are_named() -> None:
    status, findings = check("--check-seconds=0.001")
    assert status == 1
    (text,) = findings.values()
    assert text.startswith("Not examined, since they did not load within 0.001 s (check_seconds): ")


def test_output_that_cannot_show_it_all_does_not_change_the_status() -> None:
    # 1, the status of a traceback, would be that of a warning.
    flags = "--models", "caf\u00e9"
    status, findings = check(*flags, PYTHONIOENCODING="ascii")
    assert (status, "caf\\xe9 does not exist" in findings["error models"]) == (2, True)
    assert check(*flags, prefix=("sh", "-c", 'exec "$@" >&-', "sh")) == (2, {})


def test_every_bad_setting_is_found_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("worker = 2\nmax_inflight_bytes = 2048\n")
    status, findings = check(
        *("--max-queu", "3"),
        f"--config={file}",
        MNIST_WORKERZ="2",
        MNIST_LOG_LEVEL="loud",
        MNIST_VERSIONS="0",
    )
    assert status == 2
    assert list(findings) == ["error settings"]
    for words in (
        "Unknown argument '--max-queu'; the nearest flag is --max-queue.",
        "'MNIST_WORKERZ'; the nearest is MNIST_WORKERS.",
        "Unknown setting 'worker'",
        "log_level from MNIST_LOG_LEVEL is 'loud', but must be one of debug",
        "versions must be at least 1",
        "max_inflight_bytes is 2048, but must be at least max_request_bytes",
    ):
        assert words in findings["error settings"]
    assert "no file or folder" not in findings["error settings"]


@pytest.mark.parametrize("flags", [("nosuch",), ("--models", "a" * 300), ("--host", "")])
def test_what_depends_on_a_refused_setting_is_not_examined(flags: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "service.cli", "--check", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    subjects = {line[9:23].strip() for line in done.stdout.splitlines() if line[:9].strip() == "ok"}
    assert ("model mnist" in subjects) == (flags[0] == "--host")
    assert ("http_port" in subjects) == (flags[0] != "--host")


def test_both_packages_of_onnx_runtime_are_found(tmp_path: Path) -> None:
    metadata = tmp_path / "onnxruntime_gpu-1.28.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.28.0\n")
    status, findings = check(PYTHONPATH=f"{Path.cwd()}:{tmp_path}")
    assert status == 2
    assert "they overwrite each other" in findings["error packages"]
    assert "-> Uninstall both with pip" in findings["error packages"]


def test_a_broken_package_is_found(tmp_path: Path) -> None:
    (tmp_path / "flask.py").write_text("raise ImportError('libssl.so.3: cannot open')")
    status, findings = check(PYTHONPATH=tmp_path)
    assert status == 2
    assert "ImportError: libssl.so.3: cannot open" in findings["error packages"]
    assert "pip install" in findings["error packages"]


def test_taken_ports_and_foreign_addresses_are_found(taken: int, server: Server) -> None:
    status, findings = check(f"--http-port={taken}")
    assert status == 2
    assert "Stop the program that uses it" in findings["error http_port"]
    status, findings = check(f"--http-port={server.http_port}", f"--grpc-port={server.grpc_port}")
    assert status == 1
    assert "a server like this one runs" in findings["warning http_port"]


def test_a_privileged_port_is_found() -> None:
    # A network namespace has the default: ports below 1024 are privileged.
    status, findings = check(
        "--http-port=80",
        "--host=0.0.0.0",
        prefix=(*UNSHARE, "--net", *UNPRIVILEGED),
    )
    assert status == 2
    assert "CAP_NET_BIND_SERVICE" in findings["error http_port"]


def test_limits_of_a_container_are_found() -> None:
    script = (
        "mount -t tmpfs tmpfs /sys/fs/cgroup && cd /sys/fs/cgroup && "
        "echo 1000000000 >memory.max && echo 150000 100000 >cpu.max && echo 100 >pids.max && cd -"
    )
    core = min(os.sched_getaffinity(0))
    status, findings = check("--workers=8", prefix=with_mounts(f"{script} >/dev/null"))
    assert status == 2
    assert "8 workers on" in findings["warning workers"]
    assert "may need 272" in findings["error processes"]
    assert "Raise the limit to 2,210 MB, or set workers to 3." in findings["warning memory"]
    small = script.replace("1000000000", "90000000").replace("100 >pids", "max >pids")
    status, findings = check(
        "--intra-op-threads=4",
        prefix=(*with_mounts(f"{small} >/dev/null"), "taskset", "--cpu-list", str(core)),
    )
    assert status == 2
    assert "the kernel would kill it" in findings["error memory"]
    assert "4 threads compete for 1 core" in findings["warning workers"]
    assert "error processes" not in findings


def test_limits_of_files_and_folders_are_found(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f"mount -t tmpfs -o size=64k tmpfs {small} && mount -t tmpfs -o size=1m tmpfs /dev/shm"
    status, findings = check(
        "--shared-memory-regions=4",
        "--max-connections=1000",
        prefix=(*with_mounts(script), "prlimit", "--nofile=600:600"),
        TMPDIR=small,
    )
    assert status == 1 or "error TMPDIR" in findings  # the name of the folder may be too long
    assert "leaves room for 250 connections" in findings["warning open files"]
    assert "set max_connections to 250" in findings["warning open files"]
    assert "--shm-size" in findings["warning /dev/shm"]


def test_folders_that_this_user_cannot_use_are_found(models: Path) -> None:
    script = "mount -t tmpfs -o ro tmpfs /dev/shm"
    (models / "mnist").chmod(0)
    try:
        status, findings = check(prefix=(*with_mounts(script), *UNPRIVILEGED), MNIST_MODELS=models)
    finally:
        (models / "mnist").chmod(0o755)
    assert status == 2
    assert "cannot share a lock" in findings["error /dev/shm"]
    assert "Permission denied" in findings["warning model mnist"]
    assert "would not be ready" in findings["error models"]


def test_a_machine_without_a_temporary_folder_is_found_and_is_one_sentence_at_the_start() -> None:
    script = " && ".join(
        f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
        for folder in ("/tmp", "/var/tmp")
    )
    prefix = with_mounts(f"{script} && cd /proc")
    status, findings = check(prefix=prefix, PYTHONPATH=ROOT)
    assert status == 2
    assert "mount a tmpfs at /tmp" in findings["error TMPDIR"]
    http_port, grpc_port = free_ports(2)
    ports = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", f"--models={SHIPPED_MODELS}"]
    start = [*prefix, sys.executable, "-m", "service.cli", *ports]
    done = subprocess.run(
        start,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={n: value for n, value in os.environ.items() if not n.startswith("COV")}
        | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mnist-serve: The server cannot write into a temporary folder")


def test_missing_and_empty_repositories_are_found(tmp_path: Path, models: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    status, findings = check(MNIST_MODELS=tmp_path / "none", TMPDIR=long)
    assert status == 2
    assert "too long for the path of a Unix socket" in findings["error TMPDIR"]
    assert "does not exist. -> Train a model with mnist-train" in findings["error models"]
    (tmp_path / "empty").mkdir()
    status, findings = check(MNIST_MODELS=tmp_path / "empty", TMPDIR=tmp_path / "missing")
    assert status == 2
    assert "it would use" in findings["warning TMPDIR"]
    assert "mnist-train does" in findings["error models"]
    status, findings = check(
        "--model=letters", MNIST_MODELS=models, KUBERNETES_SERVICE_HOST="10.0.0.1"
    )
    assert status == 1
    assert "-> Set host to 0.0.0.0." in findings["warning host"]
    assert "'letters' is not among those that load: mnist" in findings["warning models"]


def test_broken_models_are_found(models: Path) -> None:
    """Each model but the default one has another fault."""
    good = models / "mnist" / "1"
    for name in ("damaged", "cut", "typo", "contradiction", "syntax", "ignored", "future"):
        shutil.copytree(good, models / name / "1")
    card = json.loads((good / "model.json").read_text())
    (models / "damaged/1/model.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    content = (good / "model.onnx").read_bytes()
    (models / "cut/1/model.onnx").write_bytes(content[: len(content) // 2])
    (models / "cut/1/model.json").unlink()
    (models / "typo/1/model.json").write_text(json.dumps({"label": [], "batching": True}))
    (models / "contradiction/config.pbtxt").write_text("max_batch_size: 0")
    (models / "syntax/config.pbtxt").write_text("max_batch_size 8")
    (models / "ignored/config.pbtxt").write_text("max_batch_size: 8\ninstance_group [{ count: 4 }]")
    (models / "no_version").mkdir()
    (models / "other_name/1").mkdir(parents=True)
    shutil.copy(good / "model.onnx", models / "other_name/1/net.onnx")
    tomorrow = time.time() + 86_400
    os.utime(models / "future/1/model.onnx", (tomorrow, tomorrow))
    (models / "es\033[31mcape").mkdir()

    status, findings = check(MNIST_MODELS=models)
    assert status == 1
    for subject, words in {
        "model damaged/1": f"its card says {'0' * 64}. -> The files are damaged",
        "model cut/1": "-> Correct the version, or delete its folder.",
        "model.json": "label is not a known field; labels is.",
        "model contradiction/1": "-> Correct config.pbtxt",
        "model syntax/1": "-> Correct config.pbtxt",
        "model ignored/1": "config.pbtxt sets what has no effect here: instance_group",
        "model no_version": "it has no version",
        "model other_name/1": "net.onnx; name that file in default_model_filename",
        "model es\\x1b[31mcape": "it has no version",
        "clock": "future/1/model.onnx was written at",
    }.items():
        assert words in findings.pop(f"warning {subject}"), subject
    assert findings == {}


def test_an_address_and_a_provider_that_are_missing_are_found() -> None:
    status, findings = check("--host=192.0.2.1", "--provider=cuda", CUDA_VISIBLE_DEVICES="")
    assert status == 2
    assert "Choose a host that is an address of this machine" in findings["error grpc_port"]
    assert "CUDA" in findings["error provider"]
    assert "set provider to auto" in findings["error provider"]
