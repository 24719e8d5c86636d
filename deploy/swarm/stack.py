"""Makes a Docker Swarm stack of docker-compose.yml, with the same variables and .env.

    python3 deploy/swarm/stack.py [--profile observability] | docker stack deploy -c - mnist

`docker stack deploy` takes only the older format 3.8 of Compose files, and a swarm is several
machines, so this
- leaves out what Swarm does by itself (build, depends_on, restart) or does not know (profiles,
  security_opt);
- makes Swarm configs of mounted files, which every node then gets; a changed file is a new config;
- publishes ports on each node itself (mode host), one Envoy a node: callers keep their addresses,
  and no IPVS is needed. Swarm knows no address to publish on (BIND): the ports are open on every
  interface;
- updates `serve` replica by replica, a new one first, and back to the old ones if it fails;
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


def main() -> int:
    """Print the stack."""
    parser = argparse.ArgumentParser(prog="stack.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", action="append", default=[], help="of docker-compose.yml")
    parser.add_argument("--replicas", type=int, default=2, help="of serve (default: 2)")
    options = parser.parse_args()
    text = interpolate((ROOT / "docker-compose.yml").read_text(), environment())
    print(yaml.safe_dump(stack_of(yaml.safe_load(text), options.profile, options.replicas)), end="")
    return 0


def environment() -> dict[str, str]:
    """Variables as Compose has them: the environment's, before those of .env."""
    found: dict[str, str] = {}
    if (ROOT / ".env").exists():
        for line in (ROOT / ".env").read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith("#"):
                found[name.strip()] = value.strip()
    return found | dict(os.environ)


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Fill in ${NAME:-default}, the one form that docker-compose.yml uses."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"]) or match["default"]

    return re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)


def stack_of(compose: Mapping, profiles: list[str], replicas: int) -> Mapping:
    """The stack of those services that need no profile, or one of these."""
    made: Mapping = {"version": "3.8", "services": {}, "configs": {}}
    for name, service in compose["services"].items():
        needed = service.get("profiles")
        if not needed or set(needed) & set(profiles):
            made["services"][name] = _service(name, service, made["configs"], replicas)
    used = [each for service in made["services"].values() for each in service.get("volumes", [])]
    volumes = {each.split(":")[0] for each in used if isinstance(each, str)}
    made["volumes"] = {k: v for k, v in compose["volumes"].items() if k in volumes}
    secrets = {s for service in made["services"].values() for s in service.get("secrets", [])}
    made["secrets"] = {
        name: {"file": str(ROOT / each["file"])}
        for name, each in compose["secrets"].items()
        if name in secrets
    }
    return made


def _service(name: str, service: Mapping, configs: Mapping, replicas: int) -> Mapping:
    made = {key: value for key, value in service.items() if key not in _LEFT_OUT}
    deploy = made["deploy"] = dict(made.get("deploy", {}))
    # All tasks' addresses under the service's name, as Compose has it: Envoy balances.
    deploy["endpoint_mode"] = "dnsrr"
    if name == "train":
        # Engines know jobs, but not every `stack deploy` does. What has succeeded stays stopped.
        deploy["restart_policy"] = {"condition": "on-failure", "delay": "10s", "max_attempts": 5}
    elif name == "serve":
        deploy |= {"replicas": replicas, "update_config": _ONE_BY_ONE | _BACK}
        deploy["rollback_config"] = _ONE_BY_ONE
        # Until `train` is done there is no model, and no server is ready; nothing waits for it.
        made["healthcheck"] = service["healthcheck"] | {"start_period": "600s"}
    elif name == "envoy":
        deploy["mode"] = "global"
        deploy["update_config"] = {"order": "stop-first"} | _BACK  # two cannot have one port
    made["ports"] = [_port(each) for each in service.get("ports", [])]
    # `stack deploy` passes over the short form without a word, and /tmp would be read-only.
    made["volumes"] = [{"type": "tmpfs", "target": each} for each in service.get("tmpfs", [])]
    made["configs"] = []
    for volume in service.get("volumes", []):
        source, target, *_ = volume.split(":")
        if source.startswith("./"):
            made["configs"] += _configs(ROOT / source, target, configs)
        else:
            made["volumes"].append(volume)
    return {key: value for key, value in made.items() if value not in ([], {})}


_BACK = {"failure_action": "rollback"}


def _port(published: str) -> Mapping:
    _, port, target = published.split(":")
    return {"target": int(target), "published": int(port), "mode": "host"}


def _configs(path: Path, target: str, configs: Mapping) -> list[Mapping]:
    """Configs for one file, or for all files of a folder."""
    made = []
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        inside = Path(target) / file.relative_to(path) if path.is_dir() else Path(target)
        # A config cannot be changed: another content is another one.
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        name = f"{re.sub(r'[^a-z0-9]+', '-', file.name.lower())}-{digest}"
        configs[name] = {"file": str(file), "name": name}
        made.append({"source": name, "target": str(inside), "mode": 0o444})
    return made


if __name__ == "__main__":
    sys.exit(main())
