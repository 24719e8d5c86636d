"""This machine's Docker engine and Compose. Starts the engine if none is running."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_ENGINE_WITHIN_S = 60.0


class EngineUnavailable(Exception):
    """No Docker engine is running and none can be started; the message says why."""


class CommandFailed(Exception):
    """A command failed; the message has the end of its output."""


def say(text: str) -> None:
    """Print one line, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.1f} s] {text}", flush=True)


_BEGAN = time.monotonic()


class Docker:
    """Runs commands of the Docker client and of Compose, with `environ` in their environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.client = _client()
        self.compose_command = _compose(self.client)
        self.environ = os.environ | {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
        # Compose 1.29 builds with the first client in PATH.
        self.environ["PATH"] = f"{Path(self.client).parent}:{os.environ['PATH']}"
        self.environ |= environ

    def __call__(self, *arguments: str, quiet: bool = True) -> str:
        """Run `docker ARGUMENTS` and return its output. Raises CommandFailed."""
        return self.run(self.client, *arguments, quiet=quiet)

    def compose(self, *arguments: str, quiet: bool = True) -> str:
        """Run `docker compose ARGUMENTS`."""
        return self.run(*self.compose_command, *arguments, quiet=quiet)

    def run(self, *command: str, quiet: bool = True) -> str:
        """Run any command in the repository's root, with the same environment."""
        if not quiet:
            say("$ " + " ".join(command))
        done = subprocess.run(
            command, cwd=ROOT, env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            end = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
            raise CommandFailed(f"{' '.join(command)} exits with {done.returncode}:\n{end}")
        return done.stdout.strip()

    def works(self, *arguments: str) -> bool:
        """Whether a command of the client succeeds."""
        command = [self.client, *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _client() -> str:
    """Path of a client that builds with BuildKit; newer clients need a plugin for that."""
    for path in filter(None, (shutil.which("docker"), "/usr/bin/docker")):
        help_text = subprocess.run([path, "build", "--help"], capture_output=True, text=True,
            check=False, env=os.environ | {"DOCKER_BUILDKIT": "1"})  # fmt: skip
        if "--secret" in help_text.stdout:
            return path
    raise EngineUnavailable(
        "No docker client here builds with BuildKit. Install one: apt-get install "
        "docker.io docker-compose debootstrap (Debian), or Docker's own with its plugin buildx."
    )


def _compose(client: str) -> list[str]:
    if command := os.environ.get("COMPOSE"):
        return command.split()
    version = [client, "compose", "version"]
    if subprocess.run(version, capture_output=True, check=False).returncode == 0:
        return [client, "compose"]
    if path := shutil.which("docker-compose"):
        return [path]
    raise EngineUnavailable("Compose is not installed. Install it: apt-get install docker-compose.")


@contextlib.contextmanager
def running_engine(docker: Docker) -> Iterator[None]:
    """Use the running engine; if there is none, start one and stop it at the end."""
    if docker.works("info"):
        say("Using the Docker engine that is already running.")
        yield
        return
    daemon = shutil.which("dockerd") or "/usr/sbin/dockerd"
    if not Path(daemon).exists():
        raise EngineUnavailable("No Docker engine answers, and dockerd is not installed.")
    if os.geteuid() != 0:
        raise EngineUnavailable("No Docker engine answers, and only root can start dockerd.")
    with tempfile.NamedTemporaryFile(prefix="dockerd-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [daemon, "--storage-driver", "overlay2"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + _ENGINE_WITHIN_S
        while not docker.works("info"):
            if process.poll() is not None or time.monotonic() > end:
                tail = "\n".join(Path(log.name).read_text().splitlines()[-8:])
                raise EngineUnavailable(f"dockerd does not start; the end of its log:\n{tail}")
            time.sleep(0.3)
        say(f"Started dockerd; its log is {log.name}.")
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def complain(text: str) -> None:
    """Print a message that must not be overlooked."""
    line = "!" * 80
    print(f"{line}\n{text}\n{line}", file=sys.stderr, flush=True)
