"""A Docker engine and Compose as this machine has them; starts the engine where none runs."""

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
    """There is no Docker engine, and none can be started; the message says why."""


class CommandFailed(Exception):
    """A command that had to succeed did not; the message has the end of its output."""


def say(text: str) -> None:
    """One line of the log, with the time since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.1f} s] {text}", flush=True)


_BEGAN = time.monotonic()


class Docker:
    """The client's commands. `environ` is added to what each command gets."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.client = _client()
        self.compose_command = _compose(self.client)
        self.environ = os.environ | {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
        # Compose 1.29 builds with the client that it finds first.
        self.environ["PATH"] = f"{Path(self.client).parent}:{os.environ['PATH']}"
        self.environ |= environ

    def __call__(self, *arguments: str, quiet: bool = True) -> str:
        """Run `docker ARGUMENTS`; what it wrote. Raises CommandFailed."""
        return self.run(self.client, *arguments, quiet=quiet)

    def compose(self, *arguments: str, quiet: bool = True) -> str:
        """Run `docker compose ARGUMENTS`."""
        return self.run(*self.compose_command, *arguments, quiet=quiet)

    def run(self, *command: str, quiet: bool = True) -> str:
        """Run any command from the repository's root, with the same environment."""
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
    """A client that can build with BuildKit: newer ones need a plugin for it."""
    found = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path]
    for path in found:
        help_text = subprocess.run([path, "build", "--help"], capture_output=True, text=True,
            check=False, env=os.environ | {"DOCKER_BUILDKIT": "1"})  # fmt: skip
        if "--secret" in help_text.stdout:
            return path
    raise EngineUnavailable(
        "There is no docker client that builds with BuildKit. Install one: apt-get install "
        "docker.io docker-compose debootstrap (Debian), or Docker's own with its plugin buildx."
    )


def _compose(client: str) -> list[str]:
    asked = os.environ.get("COMPOSE")
    if asked:
        return asked.split()
    version = [client, "compose", "version"]
    if subprocess.run(version, capture_output=True, check=False).returncode == 0:
        return [client, "compose"]
    if path := shutil.which("docker-compose"):
        return [path]
    raise EngineUnavailable("There is no Compose. Install it: apt-get install docker-compose.")


@contextlib.contextmanager
def running_engine(docker: Docker) -> Iterator[None]:
    """An engine that answers: the one that runs, or one that is started and stopped again."""
    if docker.works("info"):
        say("A Docker engine runs already; it is used.")
        yield
        return
    daemon = shutil.which("dockerd") or "/usr/sbin/dockerd"
    if not Path(daemon).exists():
        raise EngineUnavailable("No Docker engine answers, and there is no dockerd to start.")
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
                raise EngineUnavailable(f"dockerd does not get ready; the end of its log:\n{tail}")
            time.sleep(0.3)
        say(f"Started dockerd; its log is {log.name}.")
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def complain(text: str) -> None:
    """Say something that must not be overlooked."""
    line = "!" * 80
    print(f"{line}\n{text}\n{line}", file=sys.stderr, flush=True)
