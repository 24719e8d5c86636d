"""config.pbtxt with the real tritonclient: one server, a model per promise of docs/models.md."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from tests.conftest import Server
from tests.e2e.onnx_models import publish
from tests.e2e.triton import Triton, fixture_of

LABELS = ["zero", "one", "two"]
SCORES = """
input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
"""


def publish_add(
    models: Path, name: str, config: str, *, version: int = 1, rows: str | int = "batch"
) -> Path:
    """A model of FP32 [N,3] `x` to `y` = `x` + version and `z` = -`x`; its folder."""
    publish(
        models / ".new",
        name,
        [
            helper.make_node("Constant", [], ["one"], value_float=float(version)),
            helper.make_node("Add", ["x", "one"], ["y"]),
            helper.make_node("Neg", ["x"], ["z"]),
        ],
        [("x", TensorProto.FLOAT, [rows, 3])],
        [("y", TensorProto.FLOAT, [rows, 3]), ("z", TensorProto.FLOAT, [rows, 3])],
    )
    folder = models / name
    folder.mkdir(exist_ok=True)
    (models / ".new" / name / "1").rename(folder / str(version))
    (folder / "config.pbtxt").write_text(config)
    return folder


def publish_optional(models: Path) -> None:
    """A model `optional` of FP32 [3] `x` and `bias`, by default ones, to `y`, their sum."""
    names = ("x", "bias", "y")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in names]
    ones = numpy_helper.from_array(np.ones(3, np.float32), "bias")
    node = helper.make_node("Add", ["x", "bias"], ["y"])
    graph = helper.make_graph([node], "optional", tensors[:2], tensors[2:], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (models / "optional" / "1").mkdir(parents=True)
    onnx.save(model, models / "optional" / "1" / "model.onnx")
    (models / "optional" / "config.pbtxt").write_text(
        """
        max_batch_size: 0
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] },
                { name: "bias" data_type: TYPE_FP32 dims: [ 3 ] optional: true } ]
        output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
        """
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, policy in (
        ("specific", "specific { versions: [ 1 ] }"),
        ("latest", "latest { num_versions: 1 }"),
        ("all", "all { }"),
    ):
        for version in (1, 2, 3):
            publish_add(root, name, f"version_policy {{ {policy} }}", version=version)
    folder = publish_add(root, "labelled", "max_batch_size: 8" + SCORES)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    folder = publish_add(root, "fixed", "max_batch_size: 1" + SCORES, rows=1)
    (folder / "labels.txt").write_text("\n".join(LABELS))
    folder = publish_add(root, "renamed", 'default_model_filename: "other.onnx"')
    (folder / "1" / "model.onnx").rename(folder / "1" / "other.onnx")
    publish_add(
        root,
        "image",
        """
        name: "image" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 format: FORMAT_NHWC dims: [ 1, 3, 1 ]
                reshape { shape: [ 3 ] } optional: true }
        output { name: "y" data_type: TYPE_FP32 dims: [ 3, 1 ] reshape { shape: [ 3 ] } }
        instance_group { count: 2 kind: KIND_CPU }
        optimization { graph { level: 1 } }
        dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 2000
                           default_queue_policy { max_queue_size: 9 } }
        parameters { key: "mine" value { string_value: "kept" } }
        parameters { key: "execution_mode" value { string_value: "1" } }
        model_warmup { name: "w" batch_size: 2 inputs { key: "x"
                       value { data_type: TYPE_FP32 dims: [ 1, 3, 1 ] input_data_file: "raw" } } }
        """,
    )
    (root / "image" / "warmup").mkdir()
    (root / "image" / "warmup" / "raw").write_bytes(struct.pack("<3f", 1, 2, 3))
    publish_add(
        root,
        "queue",
        """
        max_batch_size: 8
        dynamic_batching { max_queue_delay_microseconds: 60000000
          default_queue_policy { max_queue_size: 2 allow_timeout_override: false } }
        """,
    )
    publish_optional(root)
    policy = "default_queue_policy { max_queue_size: 9 }"
    publish_add(root, "closed", f"dynamic_batching {{ {policy} }}")
    publish_add(
        root,
        "impatient",
        """
        max_batch_size: 8
        dynamic_batching { max_queue_delay_microseconds: 100000
                           default_queue_policy { default_timeout_microseconds: 1000 } }
        """,
    )
    folder = publish_add(root, "contradiction", "max_batch_size: 8")
    (folder / "1" / "model.json").write_text('{"batching": false}')
    publish_add(root, "tensorrt", 'backend: "tensorrt"')
    publish_add(root, "misnamed", 'name: "other"')
    publish_add(root, "misshapen", 'input { name: "x" dims: [ 4 ] } max_batch_size: 8')
    return root


@pytest.fixture(scope="module")
def configured(start_server: Callable[..., Server], models: Path) -> Server:
    return start_server(models, model="labelled", poll_interval=0.1, versions=2)


triton = fixture_of("configured")


def plain(answer: Any) -> Any:
    """An answer as the dictionary that HTTP returns, with numbers as JSON has them over gRPC."""
    if isinstance(answer, dict | list):
        return json.loads(json.dumps(answer), parse_int=str)
    fields = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.loads(json.dumps(fields), parse_int=str)


def config_of(triton: Triton, name: str) -> dict[str, Any]:
    answer = plain(triton.get_model_config(name))
    config: dict[str, Any] = answer["config"] if triton.is_grpc else answer
    return config


def infer(triton: Triton, name: str, x: Any, **options: Any) -> Any:
    array = np.asarray(x, np.float32)
    return triton.infer(name, [triton.input("x", array, "FP32")], **options)


def test_the_version_policy_decides_which_version_answers(triton: Triton) -> None:
    for name, answering, loaded in (
        ("specific", 1, ["1"]),
        ("latest", 3, ["3"]),
        ("all", 3, ["3", "2", "1"]),
    ):
        assert infer(triton, name, [[0, 0, 0]]).as_numpy("y").tolist() == [[answering] * 3]
        assert plain(triton.get_model_metadata(name))["versions"] == loaded
    for version in (1, 2, 3):
        answer = infer(triton, "all", [[0, 0, 0]], model_version=str(version))
        assert answer.as_numpy("y").tolist() == [[version] * 3]
    with pytest.raises(InferenceServerException):
        infer(triton, "specific", [[0, 0, 0]], model_version="3")
    assert config_of(triton, "specific")["version_policy"] == {"specific": {"versions": ["1"]}}
    assert config_of(triton, "all")["version_policy"] == {"all": {}}


def test_a_file_of_labels_names_the_classes_without_model_json(triton: Triton) -> None:
    outputs = [triton.output("y", class_count=2)]
    answer = infer(triton, "labelled", [[0, 5, 2], [9, 0, 0]], outputs=outputs)
    assert answer.as_numpy("y").tolist() == [
        [b"6.000000:1:one", b"3.000000:2:two"],
        [b"10.000000:0:zero", b"1.000000:1:one"],
    ]
    config = config_of(triton, "fixed")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == ("1", ["3"])
    answer = infer(triton, "fixed", [[0, 5, 2]], outputs=[triton.output("y", class_count=1)])
    assert answer.as_numpy("y").tolist() == [[b"6.000000:1:one"]]
    # Only the outputs that the file lists are served.
    assert [output["name"] for output in config_of(triton, "labelled")["output"]] == ["y"]
    assert answer.as_numpy("z") is None
    assert infer(triton, "renamed", [[1, 2, 3]]).as_numpy("z").tolist() == [[-1, -2, -3]]


def test_an_optional_input_may_be_left_out_where_the_model_has_a_value(triton: Triton) -> None:
    assert infer(triton, "optional", [1, 2, 3]).as_numpy("y").tolist() == [2, 3, 4]
    inputs = [
        triton.input(name, np.array(values, np.float32), "FP32")
        for name, values in (("x", [1, 2, 3]), ("bias", [10, 20, 30]))
    ]
    assert triton.infer("optional", inputs).as_numpy("y").tolist() == [11, 22, 33]
    names = {each["name"]: each["optional"] for each in config_of(triton, "optional")["input"]}
    assert names == {"x": False, "bias": True}


def test_tensors_have_the_shapes_of_the_file(triton: Triton) -> None:
    rows = np.arange(6).reshape(2, 1, 3, 1)
    answer = infer(triton, "image", rows)
    assert answer.as_numpy("y").tolist() == (rows.reshape(2, 3, 1) + 1).tolist()
    metadata = plain(triton.get_model_metadata("image"))
    assert metadata["inputs"][0]["shape"] == ["-1", "1", "3", "1"]
    assert metadata["outputs"][0]["shape"] == ["-1", "3", "1"]
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,1,3,1\], got \[1,3\]"):
        infer(triton, "image", [[1, 2, 3]])


def test_the_configuration_is_completed_and_the_same_over_both_transports(
    triton: Triton, configured: Server
) -> None:
    config = config_of(triton, "image")
    (x,), (y,) = config["input"], config["output"]
    assert (x["format"], x["dims"], x["reshape"]) == (
        *("FORMAT_NHWC", ["1", "3", "1"]),
        {"shape": ["3"]},
    )
    assert (x["optional"], x["allow_ragged_batch"], y["dims"]) == (False, False, ["3", "1"])
    assert config["max_batch_size"] == "4"
    dynamic = config["dynamic_batching"]
    assert dynamic["max_queue_delay_microseconds"] == "2000"
    assert dynamic["default_queue_policy"]["max_queue_size"] == "9"
    assert dynamic["preferred_batch_size"] == ["4"]
    assert config["parameters"]["mine"] == {"string_value": "kept"}
    assert config["default_model_filename"] == "model.onnx"
    assert config_of(triton, "renamed")["default_model_filename"] == "other.onnx"
    assert config["model_warmup"][0]["inputs"]["x"]["input_data_file"] == "raw"
    body = json.loads(configured.get("/v2/models/image/config")[1], parse_int=str)
    assert config == body


def test_what_has_no_effect_is_in_one_warning_of_the_log(configured: Server) -> None:
    lines = [line for line in configured.log.read_text().splitlines() if "no effect" in line]
    (line,) = [line for line in lines if "image" in line]
    for field in (
        "optimization",
        "instance_group",
        "parameters.execution_mode",
        "optional of 'x' (the model needs it)",
    ):
        assert field in line
    assert len(lines) == 1


def test_a_model_that_cannot_be_served_as_the_file_says_is_not(
    triton: Triton, configured: Server
) -> None:
    answer = configured.post("/v2/repository/index", b"", "application/json")[1]
    reasons = {entry["name"]: entry["reason"] for entry in answer if entry["reason"]}
    lines = configured.log.read_text().splitlines()
    messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    for name, reason in (
        ("contradiction", 'model.json says "batching": false, but config.pbtxt says max_batch_s'),
        ("tensorrt", "backend 'tensorrt' is not supported; this server runs 'onnxruntime' only"),
        ("misnamed", "name is 'other', but the folder of the model is 'misnamed'"),
        ("misshapen", "dims of 'x' in config.pbtxt are [4], without the batch, but its shape in"),
    ):
        assert reason in reasons[name]
        assert any(reason in message for message in messages)
        with pytest.raises(InferenceServerException, match=r"not loaded|unknown model"):
            infer(triton, name, [[1, 2, 3]])


def test_the_queue_of_a_model_has_the_limits_of_the_file(configured: Server) -> None:
    client = Triton("grpc.aio", configured)
    inputs = [client.input("x", np.zeros((1, 3), np.float32), "FP32")]

    async def first_answer(name: str, count: int, **options: Any) -> BaseException | None:
        """The error of the first answer to some requests at once; the others are cancelled."""
        calls = [client.client.infer(name, inputs, **options) for _ in range(count)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        assert len(waiting) == count - 1
        return done.pop().exception()

    # The two requests that may wait would do so for a minute: their timeout is void.
    refused = client.run(first_answer("queue", 3, timeout=1))
    assert "Exceeds maximum queue size: 2 requests wait (max_queue_size)" in str(refused)
    # The delay is longer than the time within which a run has to begin.
    assert "deadline" in str(client.run(first_answer("impatient", 1)))
    client.close()


def test_a_timeout_that_the_file_makes_void_is_a_warning_of_the_answer(triton: Triton) -> None:
    answer = triton.answer(infer(triton, "closed", [[1, 2, 3]], timeout=1, priority=2))
    warning = answer["parameters"]["warning"]
    if triton.is_grpc:
        warning = warning["string_param"]
    assert warning.startswith("timeout: without effect; allow_timeout_override")
    assert "priority" in warning
    assert "parameters" not in triton.answer(infer(triton, "closed", [[1, 2, 3]]))


def test_a_changed_file_is_taken_up(configured: Server, models: Path) -> None:
    def version() -> str:
        answer = json.loads(configured.get("/v2/models/latest")[1])
        return ",".join(answer["versions"])

    assert version() == "3"
    (models / "latest" / "config.pbtxt").write_text("version_policy { specific { versions: 2 } }")
    configured.wait_until(lambda: version() == "2")
