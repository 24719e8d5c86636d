"""make test-swarm: the same Compose file as a stack on a swarm of one node.

A job trains, the servers serve and roll to another image under load, and the stack is removed. If
this machine is already in a swarm, it stays in it.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.compose import images, stack
from tests.compose.engine import (
    CommandFailed,
    Docker,
    EngineUnavailable,
    complain,
    running_engine,
    say,
)
from tests.compose.load import no_failures
from tests.compose.stack import GRPC_PORT, HTTP_PORT, NEXT, SETTINGS

_STACK = "mnist-test-swarm"
_REPLICAS = 3


def main() -> int:
    """Run all steps. Returns 0 if they pass, 1 if one fails, 3 without an engine."""
    parser = argparse.ArgumentParser(prog="python -m tests.compose.swarm", description=__doc__)
    parser.add_argument("--online", action="store_true", help="as for python -m tests.compose")
    options = parser.parse_args()
    try:
        docker = Docker(SETTINGS)
        with running_engine(docker):
            images.build_all(docker, ["serve", "train"], online=options.online)
            joined = docker("info", "--format", "{{.Swarm.LocalNodeState}}") != "inactive"
            if not joined:
                docker("swarm", "init", "--advertise-addr", "127.0.0.1")
            try:
                _remove(docker)  # left by an earlier run, with its model
                return _story(docker)
            finally:
                _remove(docker)
                if not joined:
                    docker("swarm", "leave", "--force")
    except EngineUnavailable as error:
        complain(f"THE SWARM STACK WAS NOT TESTED: {error}")
        return 3


def _story(docker: Docker) -> int:
    try:
        say("== Deploy: the job trains, then the servers become ready.")
        took = stack.first_prediction_after(lambda: _deploy(docker), within=300)
        stack.predict_everywhere()
        say(f"From `stack deploy` to the first prediction: {took:.1f} s.")
        stack.wait_until(f"{_REPLICAS} running replicas", lambda: _running(docker) == _REPLICAS)
        time.sleep(5)
        say("== Roll to a new image under load: no request fails.")
        docker.environ |= NEXT
        with no_failures(HTTP_PORT, GRPC_PORT):
            began = time.monotonic()
            _deploy(docker)
            stack.wait_until("the end of the update", lambda: _update(docker) == "completed", 300)
            say(f"Swarm updated {_REPLICAS} replicas in {time.monotonic() - began:.0f} s.")
        _, body = stack.get(HTTP_PORT, "/v2")
        assert NEXT["VERSION"].encode() in body, body
    except (AssertionError, CommandFailed, TimeoutError) as error:
        say(f"FAILED: {error}")
        if docker.works("stack", "ps", _STACK):
            print(docker("stack", "ps", "--no-trunc", _STACK), file=sys.stderr)
        print("1 passed, 1 failed", flush=True)
        return 1
    print("2 passed, 0 failed", flush=True)
    return 0


def _deploy(docker: Docker) -> None:
    """Run the pipe of docs/deployment.md."""
    render = f"{sys.executable} deploy/swarm/stack.py --replicas {_REPLICAS}"
    if "COMPOSE_FILE" in docker.environ:  # images.use_tags, for the program that reads one file
        render += " | sed -E 's/@sha256:[0-9a-f]{64}//'"
    deploy = f"{docker.client} stack deploy --resolve-image never -c - {_STACK}"
    docker.run("bash", "-o", "pipefail", "-c", f"{render} | {deploy}", quiet=False)


def _running(docker: Docker) -> int:
    states = docker(
        "service", "ps", "--filter", "desired-state=running", "--format", "{{.CurrentState}}",
        f"{_STACK}_serve",
    )  # fmt: skip
    return sum(state.startswith("Running") for state in states.splitlines())


def _update(docker: Docker) -> str:
    form = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}"
    return docker("service", "inspect", "--format", form, f"{_STACK}_serve")


def _remove(docker: Docker) -> None:
    docker("stack", "rm", _STACK)
    label = f"label=com.docker.stack.namespace={_STACK}"
    stack.wait_until("no container", lambda: not docker("ps", "-aq", "--filter", label))
    if volumes := docker("volume", "ls", "-q", "--filter", label).split():
        docker("volume", "rm", *volumes)


if __name__ == "__main__":
    sys.exit(main())
