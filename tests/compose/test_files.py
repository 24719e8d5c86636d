"""The compose files and what belongs to them agree; the steps on a real engine are in __main__."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import yaml

from deploy.swarm.stack import interpolate, stack_of
from tests.conftest import ROOT

FILES = sorted(ROOT.glob("docker-compose*.yml"))
KEYS = ROOT / "docker-compose.keys.yml"


def read(name: str) -> Any:
    """A compose file with the defaults of its variables."""
    return yaml.safe_load(interpolate((ROOT / name).read_text(), {}))


def test_every_variable_is_in_the_example_of_env_with_its_default() -> None:
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = {
        name: default
        for path in FILES
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", path.read_text())
    }
    assert len(FILES) >= 4
    assert used == example


def test_prometheus_with_a_key_scrapes_what_it_does_without() -> None:
    folder = ROOT / "deploy" / "prometheus"
    plain, keys = (
        yaml.safe_load((folder / name).read_text())
        for name in ("prometheus.yml", "prometheus.keys.yml")
    )
    (serve,) = [each for each in keys["scrape_configs"] if each["job_name"] == "serve"]
    secret = serve.pop("authorization")["credentials_file"]
    assert keys == plain
    prometheus = read(KEYS.name)["services"]["prometheus"]
    assert [f"/run/secrets/{name}" for name in prometheus["secrets"]] == [secret]


def test_envoy_has_an_address_that_no_other_container_gets_and_is_the_only_trusted_proxy() -> None:
    compose = read(KEYS.name)
    (config,) = compose["networks"]["default"]["ipam"]["config"]
    subnet, others = (ipaddress.ip_network(config[key]) for key in ("subnet", "ip_range"))
    address = compose["services"]["envoy"]["networks"]["default"]["ipv4_address"]
    envoy, gateway = ipaddress.ip_address(address), ipaddress.ip_address(config["gateway"])
    assert others.subnet_of(subnet)
    for fixed in (envoy, gateway):
        assert fixed in subnet
        assert fixed not in others
    assert envoy != gateway
    assert compose["services"]["serve"]["environment"]["MNIST_TRUSTED_PROXIES"] == address


def test_only_the_command_may_change_the_keys() -> None:
    plain, services = read("docker-compose.yml")["services"], read(KEYS.name)["services"]
    command, serve = services["keys"], services["serve"]
    assert command["environment"]["MNIST_KEYS_FILE"] == serve["environment"]["MNIST_KEYS_FILE"]
    assert (command["volumes"], serve["volumes"]) == (["keys:/keys"], ["keys:/keys:ro"])
    assert command["network_mode"] == "none"
    # It is the image that serves, built the same way, and runs as confined as that.
    for key in ("image", "build", "init", "read_only", "cap_drop", "security_opt"):
        assert command[key] == plain["serve"][key], key


def test_a_server_in_a_swarm_drains_and_has_more_time_to_stop() -> None:
    compose = read("docker-compose.yml")
    plain = compose["services"]["serve"]
    task = stack_of(compose, profiles=[], replicas=2)["services"]["serve"]
    drain = {"MNIST_DRAIN_SECONDS": "5"}
    assert task["environment"] == plain["environment"] | drain != plain["environment"]
    seconds = [int(each["stop_grace_period"].removesuffix("s")) for each in (plain, task)]
    assert seconds[1] == seconds[0] + 5
    # docs/deployment.md: 5 s more than the sum of the two settings.
    assert seconds[1] >= int(plain["environment"]["MNIST_STOP_TIMEOUT"]) + 5 + 5
