"""A registry for the engine of this machine, with one image whose tag moves, for digests.py."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import platform
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from deploy.supply import digests
from tests.compose.engine import CommandFailed, Docker, say

_NAME, _TAG = "moving/base", "1"
_DOCKER = "application/vnd.docker"
_INDEX = f"{_DOCKER}.distribution.manifest.list.v2+json"
_MANIFEST = f"{_DOCKER}.distribution.manifest.v2+json"


class Registry(http.server.ThreadingHTTPServer):
    """Serves manifests and blobs by digest, and the newest index by the tag."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, tuple[str, bytes]] = {}  # digest or tag -> its media type, bytes
        self.image = f"127.0.0.1:{self.server_address[1]}/{_NAME}:{_TAG}"

    def push(self, text: str) -> str:
        """Move the tag to an image with this text in a file; the digest of its index."""
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            entry = tarfile.TarInfo("text")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        config = {"architecture": machine, "os": "linux", "config": {}}
        config["rootfs"] = {"type": "layers", "diff_ids": [_digest(layer.getvalue())]}
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._add(f"{_DOCKER}.container.image.v1+json", _json(config)),
            "layers": [self._add(f"{_DOCKER}.image.rootfs.diff.tar", layer.getvalue())],
        }
        own = self._add(_MANIFEST, _json(manifest))
        own["platform"] = {"architecture": machine, "os": "linux"}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [own]}
        digest = str(self._add(_INDEX, _json(index))["digest"])
        self.content[_TAG] = self.content[digest]
        return digest

    def _add(self, media_type: str, content: bytes) -> dict[str, object]:
        self.content[_digest(content)] = media_type, content
        return {"mediaType": media_type, "size": len(content), "digest": _digest(content)}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        wanted = self.path.rpartition("/")[2]
        media_type, content = self.server.content.get(wanted, ("application/json", b"{}"))
        self.send_response(200 if wanted in self.server.content or self.path == "/v2/" else 404)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Content-Digest", _digest(content))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 (the name that the base class calls)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the base class)
        pass


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    """A registry that listens on this machine only; engines use those without TLS."""
    with Registry() as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def check_digests(docker: Docker) -> None:
    """A base image that is pinned by digest stays the same when its tag moves."""
    with registry() as server, tempfile.TemporaryDirectory() as folder:
        dockerfile, compose = Path(folder, "Dockerfile"), Path(folder, "docker-compose.yml")
        dockerfile.write_text(f"ARG BASE_IMAGE={server.image}\nFROM ${{BASE_IMAGE}}\n")
        compose.write_text(f"services:\n  base:\n    image: {server.image}\n")
        old = server.push("old")
        try:
            pin = ["--root", folder]
            assert digests.main([*pin, "--check"]) == 1
            assert digests.main(pin) == 0
            assert digests.main([*pin, "--check"]) == 0
            for path in (dockerfile, compose):
                assert f"{server.image}@{old}\n" in path.read_text()

            new = server.push("new")
            docker("build", "--tag", "mnist-test-pinned", folder)
            assert _text(docker) == "old", "The build took what the tag names now."
            assert digests.main(pin) == 0
            assert f"ARG BASE_IMAGE={server.image}@{new}\n" in dockerfile.read_text()
            docker("build", "--tag", "mnist-test-pinned", folder)
            assert _text(docker) == "new"

            # A registry, or anyone on the way, that sends something else under a digest. The engine
            # must never have seen it: it takes manifests that it has kept, and asks nobody.
            unseen, forged = server.push("unseen"), server.push("forged")
            server.content[unseen] = server.content[forged]
            try:
                docker("pull", f"{server.image.rpartition(':')[0]}@{unseen}")
                raise AssertionError("An image that does not match its digest was accepted.")
            except CommandFailed:
                say("An image that does not match its digest is refused.")
        finally:
            docker.works("image", "rm", "--force", "mnist-test-pinned", server.image)


def _text(docker: Docker) -> str:
    container = docker("create", "mnist-test-pinned", "none")
    try:
        archive = docker("cp", f"{container}:/text", "-")
        return next(word for word in ("old", "new") if word in archive)
    finally:
        docker("rm", container)
