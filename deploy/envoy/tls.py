"""python -m deploy.envoy.tls: write envoy.tls.yaml, which is envoy.yaml with TLS on every port.

docker-compose.tls.yml mounts it. Clients are asked for a certificate and may have none; who may
call is decided by the servers, which learn the certificate's name from x-forwarded-client-cert.
Needs PyYAML. A test compares the file with this program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
FILE = FOLDER / "envoy.tls.yaml"
_SECRETS = "/run/secrets"
_HEADER = """\
# envoy.yaml with TLS on ports 8000, 8001 and 8002, for docker-compose.tls.yml.
# Written by `python -m deploy.envoy.tls`; change envoy.yaml or that program.
"""
_CONTEXT = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


def with_tls(configuration: dict[str, Any]) -> dict[str, Any]:
    """Add TLS to the listeners for clients of envoy.yaml, in place; returns it."""
    for listener in configuration["static_resources"]["listeners"]:
        if listener["name"] == "stats":  # for Prometheus, inside
            continue
        (chain,) = listener["filter_chains"]
        manager = chain["filters"][0]["typed_config"]
        alpn = ["h2"]
        if listener["name"] == "http":
            manager["codec_type"] = "AUTO"
            alpn = ["h2", "http/1.1"]
        manager["forward_client_cert_details"] = "SANITIZE_SET"
        manager["set_current_client_cert_details"] = {"subject": True, "uri": True, "dns": True}
        chain["transport_socket_connect_timeout"] = "10s"
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _CONTEXT,
                "require_client_certificate": False,
                "common_tls_context": {
                    "alpn_protocols": alpn,
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": f"{_SECRETS}/tls_certificate"},
                            "private_key": {"filename": f"{_SECRETS}/tls_key"},
                        }
                    ],
                    "validation_context": {"trusted_ca": {"filename": f"{_SECRETS}/tls_client_ca"}},
                },
            },
        }
    return configuration


def content() -> str:
    """What the file should hold."""
    plain = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
    text: str = yaml.safe_dump(with_tls(plain), sort_keys=False, width=100)
    return _HEADER + text


if __name__ == "__main__":
    FILE.write_text(content())
