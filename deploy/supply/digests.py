"""Pins third-party images by digest, in the Dockerfile, the compose files and the manifests.

    python -m deploy.supply.digests            # ask for the digest of each tag, and write it
    python -m deploy.supply.digests --check    # is each pinned?

Docker pulls each tag from wherever it is configured to pull from, and says which digest that is:
of the index, where an image is for several platforms. A tag that moves changes nothing until this
runs again. Our own images (mnist-*) are built here, so they are not pinned.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FILES = ("Dockerfile", "docker-compose*.yml", "deploy/kubernetes/**/*.yaml")
# `ARG PYTHON_IMAGE=python:3.11`, `FROM python:3.11 AS build`, `image: python:3.11`
_REFERENCE = re.compile(
    r"^(?P<before>ARG \w*IMAGE=|FROM (?:--platform=\S+ )?|[ -]*image: *['\"]?)"
    r"(?P<name>[\w./:-]+?)(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>[^\s'\"]+))?"
    r"(?P<after>['\"]?(?:[ \t].*)?)$",
    re.M,
)
_STAGE = re.compile(r"^FROM \S.* AS (\S+)", re.M | re.I)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class NoDigest(Exception):
    """The digest of an image cannot be found; the message says why."""


class Image(NamedTuple):
    """A reference to a third-party image: `name:tag`, and its digest ('' if it has none)."""

    tagged: str
    digest: str

    @property
    def is_pinned(self) -> bool:
        return _DIGEST.fullmatch(self.digest) is not None


def files(root: Path) -> list[Path]:
    """The files that may name third-party images."""
    return sorted(path for pattern in _FILES for path in root.glob(pattern))


def images(text: str) -> list[Image]:
    """The third-party images that a file names."""
    stages = _stages(text)
    return [_image(match) for match in _REFERENCE.finditer(text) if _is_of_others(match, stages)]


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """The text with `name:tag@digest` for every third-party image; '' removes a digest."""
    stages = _stages(text)

    def reference(match: re.Match[str]) -> str:
        if not _is_of_others(match, stages):
            return match[0]
        tagged = _image(match).tagged
        digest = digest_of(tagged)
        pin = f"@{digest}" if digest else ""
        return f"{match['before']}{tagged}{pin}{match['after']}"

    return _REFERENCE.sub(reference, text)


def _image(match: re.Match[str]) -> Image:
    return Image(f"{match['name']}:{match['tag'] or 'latest'}", match["digest"] or "")


def _stages(text: str) -> set[str]:
    """The stages of a Dockerfile, which FROM may name as well; and `scratch`, which is nothing."""
    return {*_STAGE.findall(text), "scratch"}


def _is_of_others(match: re.Match[str], stages: set[str]) -> bool:
    return match["name"] not in stages and not match["name"].startswith("mnist-")


def pulled_digest(tagged: str) -> str:
    """Pull an image, and return the digest that its tag has now. Raises NoDigest."""
    _docker("pull", "--quiet", tagged)
    found = json.loads(_docker("image", "inspect", "--format", "{{json .RepoDigests}}", tagged))
    repository = tagged.rpartition(":")[0]
    for reference in found or []:
        name, _, digest = reference.partition("@")
        if name == repository and _DIGEST.fullmatch(digest):
            return str(digest)
    raise NoDigest(f"Docker knows no digest of {tagged}: {found}.")


def _docker(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (names of images in our own files)
            ["docker", *arguments],  # noqa: S607 (whichever client the user has)
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise NoDigest(f"docker cannot be run: {error.strerror}.") from error
    if done.returncode != 0:
        raise NoDigest(f"docker {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """Pin, or check. Returns 1 if an image is not pinned or its digest cannot be found."""
    parser = argparse.ArgumentParser(prog="digests.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, needs no Docker")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout (default: this one)")
    options = parser.parse_args(arguments)
    known: dict[str, str] = {}

    def digest_of(tagged: str) -> str:
        if tagged not in known:
            known[tagged] = pulled_digest(tagged)
        return known[tagged]

    status = 0
    try:
        for path in files(options.root):
            text = path.read_text()
            name = path.relative_to(options.root)
            if not options.check:
                new = pinned(text, digest_of)
                if new != text:
                    path.write_text(new)
                    print(f"{name} has new digests.")
                text = new
            for image in images(text):
                if not image.is_pinned:
                    print(f"{name}: {image.tagged} has no digest: make digests", file=sys.stderr)
                    status = 1
    except NoDigest as error:
        print(f"Nothing more is pinned: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
