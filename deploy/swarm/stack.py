"""Turns docker-compose.yml into a Docker Swarm stack, with the same variables and .env.

    python3 deploy/swarm/stack.py [--profile observability] | docker stack deploy -c - mnist

`docker stack deploy` reads only the older Compose format 3.8, and a swarm is several machines.
Therefore this program
- removes what Swarm does by itself (build, depends_on, restart) or does not know (profiles,
  security_opt);
- turns mounted files into Swarm configs, which reach every node; a changed file is a new config;
- publishes the ports on each node (mode host), with one Envoy per node. Servers see the clients'
  addresses, and no IPVS is needed. Swarm cannot publish on one address only (BIND): the ports are
  open on every interface;
- updates `serve` replica by replica, the new one first, with a rollback if it fails;
- lets a stopping `serve` answer for 5 s more, as connections are still on their way to it;
- runs `train` once, and again if it fails.
Needs PyYAML (apt-get install python3-yaml).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
Mapping = dict[str, Any]

_LEFT_OUT = ("build", "depends_on", "restart", "profiles", "security_opt", "tmpfs")
_ONE_BY_ONE = {"parallelism": 1, "order": "start-first", "delay": "3s", "monitor": "10s"}
_ROLLBACK = {"failure_action": "rollback"}
# Swarm removes a task from the addresses of its service before it stops it, but clients use the
# old ones for a moment.
_DRAIN_S = 5


def main() -> int:
    """Print the stack."""
    parser = argparse.ArgumentParser(prog="stack.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--profile", action="append", default=[], help="profile of docker-compose.yml to include"
    )
    parser.add_argument("--replicas", type=int, default=2, help="replicas of serve (default: 2)")
    options = parser.parse_args()
    text = interpolate((ROOT / "docker-compose.yml").read_text(), environment())
    print(yaml.safe_dump(stack_of(yaml.safe_load(text), options.profile, options.replicas)), end="")
    return 0


def environment() -> dict[str, str]:
    """The variables that Compose would use: those of the environment win over those of .env."""
    variables: dict[str, str] = {}
    if (ROOT / ".env").exists():
        for line in (ROOT / ".env").read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith("#"):
                variables[name.strip()] = value.strip()
    return variables | dict(os.environ)


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Replace ${NAME:-default}, the only form that docker-compose.yml uses."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"]) or match["default"]

    return re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)


def stack_of(compose: Mapping, profiles: list[str], replicas: int) -> Mapping:
    """The stack of the services that are in no profile, or in one of `profiles`."""
    stack: Mapping = {"version": "3.8", "services": {}, "configs": {}}
    for name, service in compose["services"].items():
        service_profiles = service.get("profiles")
        if not service_profiles or set(service_profiles) & set(profiles):
            stack["services"][name] = _service(name, service, stack["configs"], replicas)
    services = stack["services"].values()
    mounts = [mount for service in services for mount in service.get("volumes", [])]
    volumes = {mount.split(":")[0] for mount in mounts if isinstance(mount, str)}
    stack["volumes"] = {k: v for k, v in compose["volumes"].items() if k in volumes}
    secrets = {secret for service in services for secret in service.get("secrets", [])}
    stack["secrets"] = {
        name: {"file": str(ROOT / secret["file"])}
        for name, secret in compose["secrets"].items()
        if name in secrets
    }
    return stack


def _service(name: str, service: Mapping, configs: Mapping, replicas: int) -> Mapping:
    task = {key: value for key, value in service.items() if key not in _LEFT_OUT}
    deploy = task["deploy"] = dict(task.get("deploy", {}))
    # The service's name resolves to the addresses of all tasks, as in Compose: Envoy balances.
    deploy["endpoint_mode"] = "dnsrr"
    if name == "train":
        # Engines have jobs, but not every `stack deploy` does. A task that succeeded stays stopped.
        deploy["restart_policy"] = {"condition": "on-failure", "delay": "10s", "max_attempts": 5}
    elif name == "serve":
        deploy |= {"replicas": replicas, "update_config": _ONE_BY_ONE | _ROLLBACK}
        deploy["rollback_config"] = _ONE_BY_ONE
        # No server is ready before `train` has published a model, and Swarm has no depends_on.
        task["healthcheck"] = service["healthcheck"] | {"start_period": "600s"}
        task["environment"] = service["environment"] | {"MNIST_DRAIN_SECONDS": str(_DRAIN_S)}
        grace = int(service["stop_grace_period"].removesuffix("s"))
        task["stop_grace_period"] = f"{grace + _DRAIN_S}s"
    elif name == "envoy":
        deploy["mode"] = "global"
        deploy["update_config"] = {
            "order": "stop-first"
        } | _ROLLBACK  # two Envoys cannot share a port
    task["ports"] = [_port(published) for published in service.get("ports", [])]
    # `stack deploy` silently ignores the short form, and /tmp would be read-only.
    task["volumes"] = [{"type": "tmpfs", "target": path} for path in service.get("tmpfs", [])]
    task["configs"] = []
    for volume in service.get("volumes", []):
        source, target, *_ = volume.split(":")
        if source.startswith("./"):
            task["configs"] += _configs(ROOT / source, target, configs)
        else:
            task["volumes"].append(volume)
    return {key: value for key, value in task.items() if value not in ([], {})}


def _port(published: str) -> Mapping:
    _, port, target = published.split(":")
    return {"target": int(target), "published": int(port), "mode": "host"}


def _configs(path: Path, target: str, configs: Mapping) -> list[Mapping]:
    """Configs for one file, or for all files of a folder."""
    mounts = []
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        inside = Path(target) / file.relative_to(path) if path.is_dir() else Path(target)
        # Configs are immutable: new content needs a new name.
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        name = f"{re.sub(r'[^a-z0-9]+', '-', file.name.lower())}-{digest}"
        configs[name] = {"file": str(file), "name": name}
        mounts.append({"source": name, "target": str(inside), "mode": 0o444})
    return mounts


if __name__ == "__main__":
    sys.exit(main())
