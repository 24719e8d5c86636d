"""The table of contenders and the folders it refers to."""

from __future__ import annotations

from benchmarks.contenders import CONTENDERS


def test_every_rival_has_a_folder_with_pinned_requirements():
    for contender in CONTENDERS:
        if contender.requirements:
            lines = contender.requirements.read_text().splitlines()
            pinned = [line for line in lines if line and not line.startswith(("#", " "))]
            assert pinned
            assert all("==" in line for line in pinned), contender.name
            assert contender.requirements.read_text().count("--hash=sha256:") >= len(pinned)
