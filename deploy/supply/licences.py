"""Checks the licence of every package of deploy/locks against licences.toml.

    python -m deploy.supply.licences

A licence comes from the metadata of the installed package, or from licences.toml if that says
nothing clear or the package is not installed here. Installed and locked versions may differ.
Needs the package license-expression, which the extra `dev` includes.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from license_expression import AND, OR, ExpressionError, get_spdx_licensing

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy" / "locks"
# The locks whose packages are in an image: pushing the image distributes them.
IMAGES = ("serve", "serve-gpu", "train", "train-cpu")
_SPDX = get_spdx_licensing()


@dataclass(frozen=True)
class Policy:
    """licences.toml. `only`: licence -> the packages that may have it."""

    permissive: frozenset[str]
    weak_copyleft: frozenset[str]
    only: Mapping[str, frozenset[str]]
    spellings: Mapping[str, str]
    stated: Mapping[str, str]

    def allows(self, package: str, expression: str) -> bool:
        """Whether a package may have this SPDX expression: of alternatives, one is enough."""
        return self._allows(package, _SPDX.parse(expression))

    def is_permissive(self, expression: str) -> bool:
        """Whether those who distribute the package only have to keep its notices."""
        return Policy(self.permissive, frozenset(), {}, {}, {}).allows("", expression)

    def _allows(self, package: str, node: object) -> bool:
        if isinstance(node, AND):
            return all(self._allows(package, part) for part in node.args)
        if isinstance(node, OR):
            return any(self._allows(package, part) for part in node.args)
        licence = str(node)
        return licence in self.permissive | self.weak_copyleft or package in self.only.get(
            licence, ()
        )


def read_policy() -> Policy:
    """Read licences.toml."""
    fields = tomllib.loads(Path(__file__).with_name("licences.toml").read_text())
    return Policy(
        permissive=frozenset(fields["permissive"]),
        weak_copyleft=frozenset(fields["weak_copyleft"]),
        only={licence: frozenset(rule["packages"]) for licence, rule in fields["only"].items()},
        spellings=fields["spellings"],
        stated=fields["stated"],
    )


def locked_packages(lock: str) -> list[str]:
    """The names of a lock file's packages."""
    return re.findall(r"^([a-z0-9][\w.-]*)==", (LOCKS / f"{lock}.txt").read_text(), re.M)


def stated_in_metadata(package: str, policy: Policy) -> str | None:
    """The SPDX expression of an installed package; None if it is not installed, or is unclear."""
    try:
        metadata = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    candidates = [metadata[key] for key in ("License-Expression", "License") if key in metadata]
    classifiers = [line for line in metadata.get_all("Classifier", []) if line[:7] == "License"]
    if len(classifiers) == 1:  # of several, it is not clear whether all or one of them hold
        candidates.append(classifiers[0].rpartition(" :: ")[2])
    for candidate in candidates:
        expression = policy.spellings.get(candidate, candidate)
        try:
            return str(_SPDX.parse(expression, validate=True))
        except ExpressionError:
            if expression.startswith("LicenseRef-"):
                return expression
    return None


def licence_of(package: str, policy: Policy) -> str | None:
    """The SPDX expression of a package, from licences.toml first."""
    return policy.stated.get(package) or stated_in_metadata(package, policy)


def main() -> int:
    """Print the packages by licence. Returns 1 if the list does not allow one of them."""
    policy = read_policy()
    packages = {name for lock in LOCKS.glob("*.txt") for name in locked_packages(lock.stem)}
    refused = []
    by_licence: dict[str, list[str]] = {}
    for package in sorted(packages):
        licence = licence_of(package, policy)
        by_licence.setdefault(licence or "unknown", []).append(package)
        if licence is None:
            refused.append(f"{package} states no licence: look it up, and add it to [stated]")
        elif not policy.allows(package, licence):
            refused.append(f"{package} has the licence {licence}, which is not on the list")
    for licence, names in sorted(by_licence.items()):
        print(f"{licence}: {', '.join(names)}")
    for line in refused:
        print(f"deploy/supply/licences.toml: {line}.", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
