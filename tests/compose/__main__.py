"""make test-compose: docker-compose.yml on a real Docker engine, from images to rolling updates.

Not a pytest module: it takes minutes, needs root, and each step continues from the one before.
With --short it builds only the serving image, serves the shipped model, attacks it, and kills and
stops a replica under load. The last steps are those with TLS and keys.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial

from benchmarks.load.attacks import attack
from benchmarks.load.attacks.callers import Target
from tests.compose import images, observability, secured, stack
from tests.compose.engine import (
    CommandFailed,
    Docker,
    EngineUnavailable,
    complain,
    running_engine,
    say,
)
from tests.compose.load import no_failures
from tests.compose.registry import check_digests
from tests.compose.stack import GRPC_PORT, HTTP_PORT, PROJECT, SETTINGS

_HOSTILE_S = 15.0


def main() -> int:
    """Run all steps. Returns 0 if they pass, 1 if one fails, 3 without an engine."""
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument("--short", action="store_true", help="no training, no rolling update")
    parser.add_argument(
        "--online",
        action="store_true",
        help="pull the base images, and let builds install packages from an index",
    )
    parser.add_argument("--keep", action="store_true", help="keep the stack running at the end")
    options = parser.parse_args()
    try:
        docker = Docker(SETTINGS)
        with running_engine(docker):
            return _story(docker, options)
    except EngineUnavailable as error:
        complain(f"THE COMPOSE STACK WAS NOT TESTED: {error}")
        return 3


def _story(docker: Docker, options: argparse.Namespace) -> int:
    steps: list[Callable[[Docker], None]] = [_hostile, _scale, _kill, _stop_one]
    if options.short:
        steps = [_check_images, check_digests, _up_seeded, *steps]
    else:
        observe = partial(observability.check_prometheus, online=options.online)
        steps = [_check_images, check_digests, _up, _up_again, *steps, _new_model, _new_image]
        steps += [observe, observability.check_tracing]
    passed = 0
    secrets: secured.Secured | None = None
    try:
        _down(docker)  # left by an earlier run
        _build(docker, options)
        secrets, secure = secured.steps(docker, online=options.online)
        steps += [_stops_gracefully, *secure, *[_stops_gracefully] * (not options.keep)]
        for step in steps:
            about = step.func if isinstance(step, partial) else step
            say(f"== {(about.__doc__ or '').splitlines()[0]}")
            step(docker)
            passed += 1
    except (AssertionError, CommandFailed, TimeoutError) as error:
        say(f"FAILED: {error}")
        traceback.print_exc()
        _print_logs(docker)
        print(f"{passed} passed, 1 failed", flush=True)
        return 1
    finally:
        if not options.keep:
            _down(docker)
            if secrets is not None:
                secrets.close()
    print(f"{passed} passed, 0 failed", flush=True)
    return 0


def _build(docker: Docker, options: argparse.Namespace) -> None:
    targets = ["serve"] if options.short else ["serve", "train"]
    images.build_all(docker, targets, online=options.online)
    # With the same targets and arguments, Compose's own `build` finds everything in the cache.
    docker.compose("build", *targets)
    say("`docker-compose build` agrees.")


def _check_images(docker: Docker) -> None:
    """The serving image is small, does not run as root, and has neither torch nor training."""
    images.check_serve(docker)


def _up(docker: Docker) -> None:
    """Up without a model: trains one, and serves it."""
    took = stack.first_prediction_after(
        lambda: docker.compose("up", "--detach", "--no-build", quiet=False)
    )
    say(f"From `up` to the first prediction: {took:.1f} s.")
    stack.predict_everywhere()
    say("Predicted over HTTP/1.1, HTTP/2 and gRPC.")


def _up_seeded(docker: Docker) -> None:
    """Up with the shipped model in the volume, without the job that trains."""
    docker(
        "run", "--rm", "--volume", f"{PROJECT}_models:/models", "--volume",
        f"{images.ROOT}/models:/shipped:ro", "--entrypoint", "python",
        f"mnist-serve:{SETTINGS['TAG']}", "-c",
        "import shutil; shutil.copytree('/shipped', '/models', dirs_exist_ok=True)",
    )  # fmt: skip
    up = ["up", "--detach", "--no-build", "--no-deps", "serve", "envoy"]
    took = stack.first_prediction_after(lambda: docker.compose(*up, quiet=False))
    say(f"From `up` to the first prediction, with a model: {took:.1f} s.")
    stack.predict_everywhere()
    say("Predicted over HTTP/1.1, HTTP/2 and gRPC.")


def _up_again(docker: Docker) -> None:
    """Down and up again: the model is still there, and nothing is trained."""
    docker.compose("down")
    took = stack.first_prediction_after(
        lambda: docker.compose("up", "--detach", "--no-build", quiet=False)
    )
    assert stack.predict_http()["model_version"] == "1"
    assert "nothing to train" in docker.compose("logs", "train")
    say(f"From `up` to the first prediction, with a model: {took:.1f} s.")


def _hostile(docker: Docker) -> None:
    """Hostile pictures, bodies and messages: the replica stays within its memory, and answers."""
    (replica,) = stack.replicas(docker)
    began = docker("inspect", "--format", "{{.State.StartedAt}}", replica)
    counts, _ = attack("mix", Target(HTTP_PORT, GRPC_PORT), _HOSTILE_S, None)
    say(f"What the replica answered: {counts}.")
    state = docker("inspect", "--format", "{{.State.StartedAt}} {{.State.OOMKilled}}", replica)
    assert state == f"{began} false", f"The replica ended, or a process of it was killed: {state}."
    # Of cgroup v2, or else v1.
    events = "cat memory.events || cat memory/memory.oom_control"
    peak = "cat memory.peak || cat memory/memory.max_usage_in_bytes"
    killed, peak = (
        docker("exec", "--workdir", "/sys/fs/cgroup", replica, "sh", "-c", script)
        for script in (events, peak)
    )
    assert "oom_kill 0" in killed.splitlines(), f"A process of the replica was killed: {killed}"
    say(f"The replica's memory was {int(peak) / 2**20:.0f} MB at most, page cache included.")
    stack.wait_until("predictions", lambda: bool(stack.predict_http()))


def _scale(docker: Docker) -> None:
    """Scale to 3 under load: no request fails; the calls of one gRPC connection reach all."""
    with no_failures(HTTP_PORT, GRPC_PORT):
        stack.scale(docker, 3)
        before = {each: stack.predictions_of(docker, each) for each in stack.replicas(docker)}
        time.sleep(5)  # of load on all three
        for transport in ("http", "grpc"):
            shares = [
                stack.predictions_of(docker, each).get(transport, 0) - count.get(transport, 0)
                for each, count in before.items()
            ]
            assert len(shares) == 3
            assert min(shares) > sum(shares) / 6, f"Envoy does not balance {transport}: {shares}"
            say(f"{transport} predictions by replica: {', '.join(f'{n:.0f}' for n in shares)}.")


def _kill(docker: Docker) -> None:
    """Kill one of 3 replicas under load (SIGKILL): no request fails."""
    with no_failures(HTTP_PORT, GRPC_PORT):
        time.sleep(2)  # of load on all three
        before = stack.retries(docker)
        docker("kill", stack.replicas(docker)[0], quiet=False)
        stack.wait_until("Envoy to drop the killed replica", lambda: stack.envoy_sees(docker, 2))
        say(f"Envoy retried {stack.retries(docker) - before:.0f} requests.")
        time.sleep(3)  # of load on the other two
        stack.scale(docker, 3)


def _stop_one(docker: Docker) -> None:
    """Stop one of 3 replicas under load (SIGTERM): no request fails, it exits 0."""
    with no_failures(HTTP_PORT, GRPC_PORT):
        time.sleep(2)  # of load on all three
        stopped = stack.replicas(docker)[0]
        docker("stop", "--time", "40", stopped, quiet=False)
        status = docker("inspect", "--format", "{{.State.ExitCode}}", stopped)
        assert status == "0", f"The stopped replica exits with {status}."
        time.sleep(2)  # of load on the other two
        stack.scale(docker, 3)


def _new_model(docker: Docker) -> None:
    """Roll to a new model version under load: no request fails."""
    with no_failures(HTTP_PORT, GRPC_PORT) as load:
        options = ["--seed", "1", *SETTINGS["TRAIN_OPTIONS"].split()]
        docker.compose("run", "--rm", "train", *options, quiet=False)
        stack.wait_until("answers of version 2 only", lambda: load.last_versions() == {"2"})
    say(f"Answers by model version: {dict(load.report().versions)}.")


def _new_image(docker: Docker) -> None:
    """Roll 3 replicas to a new image under load: no request fails."""
    _, before = stack.get(HTTP_PORT, "/v2")
    assert SETTINGS["VERSION"].encode() in before
    docker.environ |= stack.NEXT
    docker.environ["COMPOSE"] = " ".join(docker.compose_command)
    old = set(stack.replicas(docker))
    with no_failures(HTTP_PORT, GRPC_PORT):
        began = time.monotonic()
        docker.run("deploy/roll.sh", quiet=False)
        took = time.monotonic() - began
    new = set(stack.replicas(docker))
    assert len(new) == 3
    assert not new & old
    _, after = stack.get(HTTP_PORT, "/v2")
    assert stack.NEXT["VERSION"].encode() in after
    say(f"Rolled 3 replicas in {took:.0f} s.")


def _stops_gracefully(docker: Docker) -> None:
    """Stop: every server stops gracefully."""
    running = stack.replicas(docker)
    began = time.monotonic()
    docker.compose("stop", quiet=False)
    took = time.monotonic() - began
    codes = [docker("inspect", "--format", "{{.State.ExitCode}}", each) for each in running]
    assert set(codes) == {"0"}, f"Servers exit with {codes}."
    say(f"Stopped in {took:.1f} s, every server with exit status 0.")


def _down(docker: Docker) -> None:
    # With all files and profiles: Compose forgets what is in others.
    files = ["-f", "docker-compose.yml", "-f", "docker-compose.keys.yml"]
    docker.compose(*files, "--profile", "observability", "down", "--volumes", "--remove-orphans")


def _print_logs(docker: Docker) -> None:
    for service in ("train", "serve", "envoy"):
        try:
            print(docker.compose("logs", "--tail", "40", service), file=sys.stderr)
        except CommandFailed as error:
            print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
