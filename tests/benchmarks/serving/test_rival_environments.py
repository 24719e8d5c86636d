"""Virtual environments of rivals."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving.rival_environments import NotInstalled, environment


def test_rival_is_installed_only_on_request(tmp_path: Path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("nothing==1\n")
    with pytest.raises(NotInstalled, match="this run installs nothing"):
        environment("no-such-rival", requirements, install=False)
    with pytest.raises(NotInstalled, match="cannot be run"):
        environment("no-such-rival", requirements, "/no/python")
