"""No file and no message is unpickled: a pickle runs whatever code its author put into it."""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import ROOT
from training.errors import CheckpointError
from training.run import checkpoint

TREES = ("service", "training", "clients", "benchmarks", "deploy")
# Modules that read pickles, or formats that run code as pickles do.
MODULES = {
    "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle",
    "shelve",
}  # fmt: skip
# Functions that read pickles by default, with the argument that turns that off.
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
# Functions that read or send pickles in any case.
NEVER = {
    "pandas.read_pickle",
    "torch.distributed.all_gather_object",
    "torch.distributed.broadcast_object_list",
    "torch.distributed.gather_object",
    "torch.distributed.recv_object_list",
    "torch.distributed.scatter_object_list",
    "torch.distributed.send_object_list",
    "torch.hub.load",
    "torch.package.PackageImporter",
}


class Finding(NamedTuple):
    line: int
    what: str


def findings(source: str) -> Iterator[Finding]:
    """Every use of pickle in a module, whatever names it is imported under."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # local name -> dotted name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MODULES:
                    yield Finding(node.lineno, alias.name)
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.split(".")[0] in MODULES:
                yield Finding(node.lineno, node.module)
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        # As in importlib.import_module("pickle").
        if isinstance(node, ast.Constant) and node.value in MODULES:
            yield Finding(node.lineno, repr(node.value))
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        name = dotted(node, names)
        if name in NEVER:
            yield Finding(node.lineno, name)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name in SAFE_WITH:
            argument, value = SAFE_WITH[name]
            given = {keyword.arg: keyword.value for keyword in node.keywords}.get(argument)
            if not (isinstance(given, ast.Constant) and given.value is value):
                yield Finding(node.lineno, f"{name} without {argument}={value}")
        for keyword in node.keywords:
            is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and name not in SAFE_WITH and not is_false:
                yield Finding(node.lineno, "allow_pickle")


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression, with imported names in full; '' for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (base := dotted(node.value, names)):
        return f"{base}.{node.attr}"
    return ""


def test_no_module_reads_or_sends_pickles() -> None:
    paths = [path for tree in TREES for path in (ROOT / tree).rglob("*.py")]
    paths = [path for path in paths if ".venvs" not in path.parts]
    assert len(paths) > 200
    assert [
        f"{path.relative_to(ROOT)}:{finding.line}: {finding.what}"
        for path in paths
        for finding in findings(path.read_text())
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "import shelve",
        "import importlib\nimportlib.import_module('marshal')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=False)",
        "from torch import load\nload('x')",
        "import torch\ntorch.load('x', weights_only=options.trusted)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.save('x', y, allow_pickle=True)",
        "from torch import distributed\ndistributed.broadcast_object_list([1])",
        "import torch.distributed as dist\nf = dist.all_gather_object",
    ],
)
def test_each_way_to_a_pickle_is_found(source: str) -> None:
    assert list(findings(source))


def test_safe_uses_are_not_reported() -> None:
    source = "import torch, numpy as np\ntorch.load(p, weights_only=True)\n"
    source += "np.load(p, allow_pickle=False)\nnp.save(p, a, allow_pickle=False)\nimport json\n"
    assert list(findings(source + "json.load(p)\nstudy.load(p)\n")) == []


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


@pytest.mark.parametrize("read", [checkpoint.read, checkpoint.read_run, checkpoint.load])
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(
    tmp_path: Path, form: str, read: Callable[[Path], object]
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.safetensors"
    attack = {"state_dict": Attack(mark)}
    content = io.BytesIO()
    if form == "pickle":
        pickle.dump(attack, content)
    else:
        torch.save(attack, content, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(content.getvalue())

    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a checkpoint"):
        read(path)
    assert not mark.exists()

    content.seek(0)
    if form == "pickle":
        pickle.load(content)  # noqa: S301 (our own attack)
    else:
        torch.load(content, weights_only=False)
    assert mark.exists()  # the attack is a real one
