"""The tests repeat the tree: each module has its test module, under the same path."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT

TESTED_TREES = ("service", "training", "clients/python")
# Modules without a test module of their own, with the tests that cover them instead.
TESTED_ELSEWHERE = {
    "service/grpc/http2/events.py": "it only declares: test_connection.py sees each event",
    "service/check/finding.py": "it only declares",
    "service/http/exchange.py": "it only declares",
    "service/http/carrier.py": "http1/ and http2/test_connection.py end connections in every way",
    "training/errors.py": "it only declares: tests raise each error where it is caused",
    "clients/python/mnist_client/results.py": "it only declares",
}
# Test modules without a module of their name, with what they test.
OTHER_TESTS = {
    "service/grpc/http2/conformance.py": "frame sequences by section of RFC 9113",
    "service/grpc/http2/interleavings.py": "random interleavings of the calls of a connection",
    "service/runtime/never_wrong.py": "random graphs through batcher and session together",
    "service/imports.py": "what all modules of service/ import before the server is ready",
    "service/request_path.py": "the path of one request through all modules of service/",
}
# Compiled from proto/; tests/proto compares it with tritonclient's.
GENERATED = ("service/stubs", "clients/python/mnist_client/stubs")


def modules(tree: str) -> set[str]:
    """Paths of a tree's modules, below the root; packages and generated code are left out."""
    paths = {path.relative_to(ROOT) for path in (ROOT / tree).rglob("*.py")}
    return {
        path.as_posix()
        for path in paths
        if path.name != "__init__.py" and not path.as_posix().startswith(GENERATED)
    }


def module_of(test: Path) -> str:
    """The module that a test module is named after."""
    path = test.relative_to(ROOT / "tests")
    return path.with_name(path.name.removeprefix("test_")).as_posix()


def with_tests(tree: str) -> set[str]:
    """Paths of the modules that tests/<tree> has a test module for."""
    return {module_of(test) for test in (ROOT / "tests" / tree).rglob("test_*.py")}


def test_every_module_has_a_test_module() -> None:
    missing = {module for tree in TESTED_TREES for module in modules(tree) - with_tests(tree)}
    assert missing - TESTED_ELSEWHERE.keys() == set()


def test_every_test_module_is_named_after_a_module() -> None:
    without_module = {test for tree in TESTED_TREES for test in with_tests(tree) - modules(tree)}
    assert without_module - OTHER_TESTS.keys() == set()


def test_exceptions_are_modules_without_a_test_module() -> None:
    for module in TESTED_ELSEWHERE:
        assert (ROOT / module).is_file(), f"{module} does not exist"
        (tree,) = (tree for tree in TESTED_TREES if module.startswith(f"{tree}/"))
        assert module not in with_tests(tree), f"{module} has a test module: remove the exception"
