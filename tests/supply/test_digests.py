"""deploy/supply/digests.py: which images it finds, and what it writes.

tests/compose/registry.py runs it with a real engine and a registry whose tag moves.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.supply import digests
from tests.conftest import ROOT

OLD, NEW = f"sha256:{'0' * 64}", f"sha256:{'a' * 64}"
DOCKERFILE = """ARG PYTHON_IMAGE=python:3.11-slim
ARG TRAIN_LOCK=train
FROM ${PYTHON_IMAGE} AS build
FROM debian:12@%s AS other
FROM build AS wheel
FROM --platform=linux/amd64 untagged
FROM scratch
"""
COMPOSE = """services:
  serve:
    image: mnist-serve:${TAG:-latest}
  envoy:
    image: some/envoy:v1
  other:
    - image: "quoted:2"
    image: 127.0.0.1:5000/thing:1.0@%s  # why
  untagged:
    image: grafana
"""


def test_tags_stay_and_get_digests_old_ones_are_replaced() -> None:
    text = digests.pinned(DOCKERFILE % OLD, lambda tagged: NEW)
    expected = (DOCKERFILE % NEW).replace("3.11-slim", f"3.11-slim@{NEW}")
    assert text == expected.replace("untagged", f"untagged:latest@{NEW}")
    assert digests.pinned(text, lambda tagged: NEW) == text


def test_images_of_ours_are_left_alone_and_all_others_are_found() -> None:
    found = digests.images(COMPOSE % OLD)
    assert [image.tagged for image in found] == [
        "some/envoy:v1",
        "quoted:2",
        "127.0.0.1:5000/thing:1.0",
        "grafana:latest",
    ]
    assert [image.is_pinned for image in found] == [False, False, True, False]
    text = digests.pinned(COMPOSE % OLD, lambda tagged: NEW)
    assert f"    image: 127.0.0.1:5000/thing:1.0@{NEW}  # why\n" in text
    assert f'    - image: "quoted:2@{NEW}"\n' in text
    assert "    image: mnist-serve:${TAG:-latest}\n" in text
    assert digests.pinned(text, lambda tagged: "").count("@") == 0


def test_a_malformed_digest_is_not_a_pin() -> None:
    for digest in ("sha256:abc", "latest", OLD.upper(), f"{OLD}0"):
        (image,) = digests.images(f"FROM debian:12@{digest}\n")
        assert not image.is_pinned, digest


def test_check_names_the_file_and_the_image_and_needs_no_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Dockerfile").write_text("FROM debian:12\n")
    assert digests.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "Dockerfile: debian:12 has no digest: make digests\n"
    (tmp_path / "Dockerfile").write_text(f"FROM debian:12@{OLD}\n")
    assert digests.main(["--check", "--root", str(tmp_path)]) == 0

    assert digests.main(["--root", str(tmp_path)]) == 1
    assert "docker cannot be run: No such file or directory." in capsys.readouterr().err
    assert (tmp_path / "Dockerfile").read_text() == f"FROM debian:12@{OLD}\n"


def test_every_image_of_others_in_this_checkout_is_found_and_all_or_none_are_pinned() -> None:
    found = [image for path in digests.files(ROOT) for image in digests.images(path.read_text())]
    names = {image.tagged.rpartition(":")[0] for image in found}
    assert names == {
        "python", "envoyproxy/envoy", "prom/prometheus", "grafana/grafana", "jaegertracing/jaeger",
    }  # fmt: skip
    assert len({image.is_pinned for image in found}) == 1
    assert not any(image.tagged.endswith(":latest") for image in found)


def test_the_dockerfile_copies_from_its_own_stages_only() -> None:
    text = (ROOT / "Dockerfile").read_text()
    sources = set(re.findall(r"\bfrom=([^,\s]+)", text))
    assert sources
    assert sources <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))


def test_substitutes_without_a_registry_have_the_same_tags() -> None:
    script = (ROOT / "deploy" / "engine" / "base-images.sh").read_text()
    values = dict(re.findall(r"^readonly (\w+)=(\S+)$", script, re.M))
    envoy = values["ENVOY_IMAGE"].replace("$ENVOY_VERSION", values["ENVOY_VERSION"])
    substitutes = {values["PYTHON_IMAGE"], envoy, values["PROMETHEUS_IMAGE"]}
    found = {
        image.tagged for path in digests.files(ROOT) for image in digests.images(path.read_text())
    }
    assert substitutes <= found
