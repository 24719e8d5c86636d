"""deploy/supply/licences.py: what it allows and refuses, and that NOTICE says what is special."""

from __future__ import annotations

import pytest

from deploy.supply import licences
from deploy.supply.licences import IMAGES, licence_of, locked_packages, read_policy
from tests.conftest import ROOT

POLICY = read_policy()


def test_every_locked_package_has_a_licence_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    status = licences.main()
    output, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    assert "BSD-3-Clause: " in output


@pytest.mark.parametrize(
    ("package", "expression", "allowed"),
    [
        ("any", "MIT", True),
        ("any", "MIT AND BSD-3-Clause", True),
        ("any", "GPL-3.0-only", False),
        ("any", "MIT AND GPL-3.0-only", False),
        ("any", "MIT OR GPL-3.0-only", True),
        ("any", "MPL-2.0 AND (Apache-2.0 OR AGPL-3.0-only)", True),
        ("any", "LGPL-3.0-or-later", False),
        ("connected-components-3d", "LGPL-3.0-or-later", True),
        ("any", "LicenseRef-NVIDIA-Proprietary", False),
        ("any", "Apache-2.0 WITH LLVM-exception", True),
        ("any", "LicenseRef-Something", False),
    ],
)
def test_a_licence_is_judged_with_all_its_parts(
    package: str, expression: str, allowed: bool
) -> None:
    assert POLICY.allows(package, expression) is allowed


def test_a_package_without_a_clear_licence_fails_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        licences, "locked_packages", lambda lock: ["flask", "no-such-package", "torchvision"]
    )
    assert licences.main() == 1
    assert capsys.readouterr().err == (
        "deploy/supply/licences.toml: no-such-package states no licence: look it up, and add it to "
        "[stated].\n"
    )


def test_the_list_has_no_package_that_is_not_locked() -> None:
    locked = {name for path in licences.LOCKS.glob("*.txt") for name in locked_packages(path.stem)}
    listed = {*POLICY.stated, *(name for names in POLICY.only.values() for name in names)}
    assert listed - locked == set()


def test_what_the_list_states_does_not_contradict_installed_metadata() -> None:
    for package, licence in POLICY.stated.items():
        assert licences.stated_in_metadata(package, POLICY) in (None, licence), package


def test_notice_names_every_package_of_an_image_that_asks_for_more_than_notices() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for package in {name for lock in IMAGES for name in locked_packages(lock)}:
        licence = licence_of(package, POLICY)
        assert licence
        if not POLICY.is_permissive(licence):
            name = "nvidia-*" if package.startswith("nvidia-") else package
            assert name in notice, f"NOTICE does not name {package} ({licence})"
    for licence in (*POLICY.weak_copyleft, "LGPL-3.0-or-later"):
        assert licence in notice
