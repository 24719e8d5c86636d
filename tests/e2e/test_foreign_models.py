"""Models of many kinds load, and the server answers what ONNX Runtime does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tritonclient.utils import np_to_triton_dtype

from tests.conftest import Server
from tests.e2e import foreign_models, unusual_models
from tests.e2e.foreign_models import Feed, Foreign
from tests.e2e.triton import Triton

MODELS = [*foreign_models.MODELS, *unusual_models.MODELS]
MODELS_WITH_FILES = [*foreign_models.MODELS_WITH_FILES, *unusual_models.MODELS_WITH_FILES]
NAMES = [make.__name__ for make in (*MODELS, *MODELS_WITH_FILES)]


class Served(NamedTuple):
    server: Server
    folder: Path
    models: Mapping[str, Foreign]
    clients: tuple[Triton, Triton]


def publish(repository: Path) -> dict[str, Foreign]:
    models = {}
    for make in (*MODELS, *MODELS_WITH_FILES):
        folder = repository / make.__name__ / "1"
        folder.mkdir(parents=True)
        made: Any = make
        foreign: Foreign = made(folder) if make in MODELS_WITH_FILES else made()
        if isinstance(foreign.model, onnx.ModelProto):
            (folder / "model.onnx").write_bytes(foreign.model.SerializeToString())
        for path, text in (
            (folder / "model.json", foreign.card),
            (folder.parent / "config.pbtxt", foreign.config),
        ):
            if text:
                path.write_text(text)
        models[make.__name__] = foreign
    return models


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Server]
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("foreign")
    models = publish(folder)
    server = start_server(folder, model=NAMES[0])
    clients = Triton("http", server), Triton("grpc", server)
    yield Served(server, folder, models, clients)
    for client in clients:
        client.close()


def expected(path: Path, feed: Feed) -> dict[str, np.ndarray]:
    """The outputs of ONNX Runtime, with the settings of the server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # It takes texts that are not UTF-8 in arrays of bytes alone, each with a zero byte at its end.
    arrays = {
        name: array.astype("S100") if any(isinstance(e, bytes) for e in array.flat) else array
        for name, array in feed.items()
    }
    names = [node.name for node in session.get_outputs() if "seq(" not in node.type]
    return dict(zip(names, session.run(names, arrays), strict=True))


def assert_equal(output: np.ndarray, array: np.ndarray) -> None:
    if array.dtype == object:
        array = np.array([text.encode() for text in array.flat], object).reshape(array.shape)
    assert output.dtype == array.dtype
    assert output.shape == array.shape
    if array.dtype.kind == "f":
        # The order of a sum depends on where in memory it begins.
        np.testing.assert_allclose(output, array, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(output, array)


def of_json(array: np.ndarray) -> list[Any]:
    """The values of a tensor as JSON has them, with null for NaN."""
    return [
        None if array.dtype.kind == "f" and np.isnan(value) else value
        for value in array.ravel().tolist()
    ]


def assert_json(server: Server, name: str, feed: Feed, outputs: Mapping[str, np.ndarray]) -> None:
    """Ask in JSON, and compare each value and its type."""
    inputs = [
        {
            "name": key,
            "datatype": np_to_triton_dtype(array.dtype),
            "shape": array.shape,
            "data": of_json(array),
        }
        for key, array in feed.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    status, answer = server.post(f"/v2/models/{name}/infer", body, "application/json")
    assert status == 200, answer
    assert [output["name"] for output in answer["outputs"]] == list(outputs)
    for output in answer["outputs"]:
        array, data = outputs[output["name"]], output["data"]
        assert output["datatype"] == np_to_triton_dtype(array.dtype)
        assert output["shape"] == list(array.shape)
        right = of_json(array)
        assert [type(value) for value in data] == [type(value) for value in right]
        if array.dtype.kind == "f":
            numbers = [[value for value in each if value is not None] for each in (data, right)]
            assert_equal(*(np.array(each, array.dtype) for each in numbers))
        else:
            assert data == right


def test_there_are_forty_models_and_all_of_them_load(served: Served) -> None:
    assert len(set(NAMES)) == len(NAMES) >= 40
    index = served.clients[0].get_model_repository_index()
    assert {entry["name"] for entry in index if entry["state"] == "READY"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_onnx_runtime(served: Served, name: str) -> None:
    path = served.folder / name / "1" / "model.onnx"
    for feed in served.models[name].requests:
        outputs = expected(path, feed)
        for client in served.clients:
            inputs = [
                client.input(key, array, np_to_triton_dtype(array.dtype))
                for key, array in feed.items()
            ]
            result = client.infer(name, inputs)
            for key, array in outputs.items():
                assert_equal(result.as_numpy(key), array)
        # JSON has only text that is UTF-8.
        if not any(isinstance(value, bytes) for array in feed.values() for value in array.flat):
            assert_json(served.server, name, feed, outputs)


def test_only_a_warm_up_that_cannot_be_guessed_fails_and_says_so(served: Served) -> None:
    lines = [line for line in served.server.log.read_text().splitlines() if "warm-up" in line]
    named = {name for line in lines for name in NAMES if f"of {name} version 1 failed" in line}
    assert named == {"huge_kernel"}
