"""What scripts written for Triton rely on, promise by promise, with the real tritonclient.

Models are those of tests.triton.repository. docs/protocol.md has the same promises, field by field.
"""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, shared_memory

from tests.conftest import Server
from tests.e2e.triton import OVER_GRPC, Triton, fixture_of
from tests.triton.repository import NAMES, publish_examples

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)
PRIORITY = "priority: without effect; all requests are equal."  # a warning


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    publish_examples(root)
    return root


@pytest.fixture(scope="module")
def examples(start_server: Callable[..., Server], models: Path) -> Server:
    """Started as Triton would be for its examples: every model, and clients may load and unload."""
    return start_server(
        models,
        model_control_mode="explicit",
        load_model="*",
        server_name="triton",
        shared_memory_regions=8,
        triton_metrics=True,
    )


@pytest.fixture(scope="module")
def explicit(start_server: Callable[..., Server], models: Path) -> Server:
    return start_server(
        models,
        model_control_mode="explicit",
        load_model="simple,simple_int8",
        typed_answers=True,
        max_request_bytes=100_000,
    )


triton = fixture_of("examples")


def simple_inputs(triton: Triton, datatype: str = "INT32") -> list[Any]:
    kind = {"INT32": np.int32, "INT8": np.int8, "BYTES": np.object_}[datatype]
    values = (A.astype(str), B.astype(str)) if datatype == "BYTES" else (A, B)
    return [
        triton.input(f"INPUT{index}", value.astype(kind), datatype)
        for index, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("name", "datatype"),
    [("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "BYTES")],
)
def test_two_inputs_are_added_and_subtracted(triton: Triton, name: str, datatype: str) -> None:
    outputs = [triton.output("OUTPUT0"), triton.output("OUTPUT1")]
    result = triton.infer(
        name, simple_inputs(triton, datatype), outputs=outputs, request_id="1", headers={"a": "1"}
    )
    assert triton.answer(result)["id"] == "1"
    assert np.array_equal(result.as_numpy("OUTPUT0").astype(np.int32), A + B)
    assert np.array_equal(result.as_numpy("OUTPUT1").astype(np.int32), A - B)


def test_strings_of_any_number_come_back(triton: Triton) -> None:
    values = np.array([[b"", "\u4e16\u754c".encode(), b""]], np.object_)
    result = triton.infer("simple_identity", [triton.input("INPUT0", values, "BYTES")])
    assert result.as_numpy("OUTPUT0").tolist() == values.tolist()


def test_pictures_are_classified_with_labels_of_the_configuration(triton: Triton) -> None:
    config = triton.get_model_config("densenet_onnx")
    if triton.is_grpc:
        picture = config.config.input[0]
        assert (config.config.max_batch_size, list(picture.dims)) == (0, [3, 224, 224])
        assert tritonclient.grpc.model_config_pb2.ModelInput.Format.Name(picture.format) == (
            "FORMAT_NCHW"
        )
    else:
        (picture,) = config["input"]
        assert (config["max_batch_size"], picture["dims"]) == (0, [3, 224, 224])
        assert picture["format"] == "FORMAT_NCHW"
    green = np.zeros((3, 224, 224), np.float32)
    green[1] = 1
    output = triton.output("fc6_1", class_count=2)
    result = triton.infer(
        "densenet_onnx", [triton.input("data_0", green, "FP32")], outputs=[output]
    )
    assert result.as_numpy("fc6_1").ravel()[0] == b"1.000000:1:GREEN"


def test_the_server_has_the_name_that_the_settings_say(triton: Triton) -> None:
    metadata = triton.get_server_metadata()
    assert (metadata.name if triton.is_grpc else metadata["name"]) == "triton"
    assert triton.is_server_live()
    assert triton.is_server_ready()  # although no model is named mnist
    assert triton.is_model_ready("simple")


def test_errors_begin_with_the_words_that_the_examples_compare(triton: Triton) -> None:
    wrong = "wrong_model_name"
    for call in (
        partial(triton.get_model_metadata, wrong),
        partial(triton.get_model_config, wrong),
        partial(triton.get_inference_statistics, wrong),
        partial(triton.infer, wrong, simple_inputs(triton)),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.message().startswith(f"Request for unknown model: '{wrong}' is not f")
    with pytest.raises(InferenceServerException, match=f"failed to load '{wrong}', failed to poll"):
        triton.load_model(wrong)
    (first, _) = simple_inputs(triton)
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("simple", [first])
    assert caught.value.message() == (
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but "
        "missing required input(s) ['INPUT1']. Please provide all required input(s)."
    )


def refusal(triton: Triton, name: str, inputs: list[Any], **options: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(name, inputs, **options)
    assert triton.code(caught.value) == "INVALID_ARGUMENT"
    return str(caught.value.message())


def test_errors_of_datatypes_shapes_and_sizes_have_tritons_words(triton: Triton) -> None:
    first, second = simple_inputs(triton)
    floats = triton.input("INPUT1", B.astype(np.float32), "FP32")
    assert refusal(triton, "simple", [first, floats]) == (
        "inference input 'INPUT1' data-type is 'FP32', but model 'simple' expects 'INT32'."
    )
    short = triton.input("INPUT1", B[:, :4], "INT32")
    assert refusal(triton, "simple", [first, short]) == (
        "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,16], got [1,4]; -1 "
        "stands for any size."
    )
    pair = triton.input("INPUT1", np.concatenate([B, B]), "INT32")
    assert refusal(triton, "simple", [first, pair]) == (
        "input 'INPUT1' batch size does not match other inputs for 'simple': it has 2 rows, and "
        "'INPUT0' has 1."
    )
    pair.set_shape([1, 16])
    assert refusal(triton, "simple", [first, pair]) == (
        "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 64, got 128; its "
        "shape is [1,16] of INT32."
    )
    assert refusal(triton, "simple", [first, second, second]) == (
        "input 'INPUT1' already exists in request."
    )
    twice = [triton.output("OUTPUT0"), triton.output("OUTPUT0")]
    assert refusal(triton, "simple", [first, second], outputs=twice) == (
        "output 'OUTPUT0' already exists in request."
    )


def test_errors_of_strings_have_tritons_words(triton: Triton) -> None:
    first, second = simple_inputs(triton, "BYTES")
    where = "string elements{} for inference input 'INPUT1' for model 'simple_string', "
    for count, words in (
        (17, f"unexpected number of {where.format(' 17')}expecting 16."),
        (14, f"expected 16 {where.format('')}got 14."),
    ):
        other = triton.input("INPUT1", np.full((1, count), "1", object), "BYTES")
        other.set_shape([1, 16])
        assert refusal(triton, "simple_string", [first, other]) == words
    classes = [triton.output("OUTPUT0", class_count=1)]
    assert refusal(triton, "simple_string", [first, second], outputs=classes).startswith(
        "class result not available for output due to unsupported type 'BYTES'"
    )


def test_models_are_listed_unloaded_and_loaded(triton: Triton) -> None:
    index = triton.get_model_repository_index()
    entries = index.models if triton.is_grpc else index
    names = [entry.name if triton.is_grpc else entry["name"] for entry in entries]
    assert sorted(names) == sorted(NAMES)
    triton.unload_model("simple")
    assert not triton.is_model_ready("simple")
    assert triton.is_server_ready()
    with pytest.raises(InferenceServerException, match="'simple' has no available versions"):
        triton.infer("simple", simple_inputs(triton))
    triton.load_model("simple")
    assert triton.is_model_ready("simple")


def test_a_load_with_another_configuration_or_files_is_refused(triton: Triton) -> None:
    for options in (
        {"config": '{"max_batch_size":"16"}'},
        {"config": "{}", "files": {"file:1/model.onnx": b"a"}},
    ):
        with pytest.raises(InferenceServerException, match="is not supported") as caught:
            triton.load_model("simple", **options)
        assert caught.value.message().startswith("failed to load 'simple': parameter ")
    assert triton.is_model_ready("simple")


@pytest.fixture
def stub(examples: Server) -> Iterator[Any]:
    with grpc.insecure_channel(examples.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def typed_request() -> Any:
    request = service_pb2.ModelInferRequest(model_name="simple")
    for name, values in (("INPUT0", A), ("INPUT1", B)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents.extend(values.ravel().tolist())
    return request


def test_typed_contents_are_answered_raw(stub: Any) -> None:
    request = typed_request()
    answer = stub.ModelInfer(request)
    assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.int32), (A + B)[0])
    assert not any(output.HasField("contents") for output in answer.outputs)
    request.raw_input_contents.append(A.tobytes())
    words = "contents field must not be specified when using raw_input_contents for 'INPUT0' for "
    with pytest.raises(grpc.RpcError, match=words + "model 'simple'"):
        stub.ModelInfer(request)


def test_typed_contents_are_answered_typed_if_the_settings_say_so(explicit: Server) -> None:
    with grpc.insecure_channel(explicit.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(typed_request())
    assert list(answer.outputs[0].contents.int_contents) == (A + B).ravel().tolist()
    assert not answer.raw_output_contents


def test_metadata_has_properties(examples: Server) -> None:
    request = service_pb2.ModelMetadataRequest(name="simple").SerializeToString()
    with grpc.insecure_channel(examples.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        answer = call(request)
    assert b"execution_provider" in answer  # field 6, which tritonclient's message lacks
    assert b"CPUExecutionProvider" in answer


def streamed(server: Server, *requests: tuple[str, dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Send a stream of requests, each a model and options; the results and errors in order."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    client.start_stream(lambda result, error: answers.put((result, error)))
    inputs = [
        tritonclient.grpc.InferInput(name, [1, 16], "INT32").set_data_from_numpy(values)
        for name, values in (("INPUT0", A), ("INPUT1", B))
    ]
    for model, options in requests:
        client.async_stream_infer(model, inputs, **options)
    received = [answers.get(timeout=60) for _ in requests]
    client.stop_stream()
    client.close()
    return received


def test_streams_answer_every_request_by_its_id(examples: Server) -> None:
    requests = [("simple", {"request_id": str(number)}) for number in range(5)]
    received = streamed(examples, *requests, ("none", {}))
    for number, (result, error) in enumerate(received[:5]):
        assert error is None
        assert result.get_response().id == str(number)
        assert np.array_equal(result.as_numpy("OUTPUT0"), A + B)
    assert "Request for unknown model: 'none'" in str(received[5][1])


def test_tensors_are_passed_through_shared_memory(triton: Triton) -> None:
    handle = shared_memory.create_shared_memory_region("data", f"/{triton.kind}-examples", 256)
    try:
        shared_memory.set_shared_memory_region(handle, [A, B])
        triton.unregister_system_shared_memory()
        triton.unregister_cuda_shared_memory()
        triton.register_system_shared_memory("data", f"/{triton.kind}-examples", 256)
        inputs = [triton.empty_input(f"INPUT{index}", [1, 16], "INT32") for index in (0, 1)]
        outputs = [triton.output(f"OUTPUT{index}") for index in (0, 1)]
        for index in (0, 1):
            inputs[index].set_shared_memory("data", 64, offset=64 * index)
            outputs[index].set_shared_memory("data", 64, offset=128 + 64 * index)
        result = triton.infer("simple", inputs, outputs=outputs)
        total = shared_memory.get_contents_as_numpy(handle, np.int32, [1, 16], offset=128)
        assert np.array_equal(total, A + B)
        if not triton.is_grpc:  # the C++ library takes any parameters for binary data
            for output in triton.answer(result)["outputs"]:
                assert output.keys() == {"name", "datatype", "shape"}
        with pytest.raises(InferenceServerException, match="region 'data' already in manager"):
            triton.register_system_shared_memory("data", f"/{triton.kind}-examples", 256)
        outputs[0].set_shared_memory("data", 60, offset=128)
        with pytest.raises(InferenceServerException, match="at least 64 bytes to hold the results"):
            triton.infer("simple", inputs, outputs=outputs)
        inputs[0].set_shared_memory("data", 64, offset=512)
        with pytest.raises(InferenceServerException, match="Invalid offset for shared memory"):
            triton.infer("simple", inputs)
        triton.unregister_system_shared_memory("data")
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            triton.infer("simple", inputs)
        with pytest.raises(InferenceServerException, match="Unable to find system shared memory"):
            triton.get_system_shared_memory_status("data")
    finally:
        shared_memory.destroy_shared_memory_region(handle)


def test_parameters_without_effect_are_named_in_the_answer(triton: Triton) -> None:
    def warning(**options: Any) -> str:
        fields = triton.answer(triton.infer("simple", simple_inputs(triton), **options))
        found = fields.get("parameters", {}).get("warning", "")
        return str(found["string_param"] if found and triton.is_grpc else found)

    assert warning() == warning(timeout=60_000_000) == ""
    assert warning(priority=1) == PRIORITY
    assert warning(sequence_id=7, sequence_start=True).startswith("sequence_id, sequence_start: w")


def test_a_message_of_a_stream_gets_the_same_warning(examples: Server) -> None:
    received = streamed(examples, ("simple", {}), ("simple", {"priority": 1}), ("simple", {}))
    before, message, after = (result.get_response().parameters for result, _ in received)
    assert message["warning"].string_param == PRIORITY
    assert "warning" not in before
    assert "warning" not in after


def test_a_sequence_model_takes_its_control_inputs_as_inputs(triton: Triton) -> None:
    """There is no sequence batcher to make them: the error names the inputs to send."""
    value = triton.input("INPUT", np.array([[5]], np.int32), "INT32")
    with pytest.raises(InferenceServerException, match=r"input\(s\) \['READY','START'\]|'START'"):
        triton.infer("simple_sequence", [value], sequence_id=1, sequence_start=True)
    controls = [
        triton.input(name, np.ones((1, 1), np.int32), "INT32") for name in ("START", "READY")
    ]
    result = triton.infer("simple_sequence", [value, *controls])
    assert result.as_numpy("OUTPUT").tolist() == [[6]]


def post(server: Server, model: str, **body: Any) -> tuple[int, Any]:
    path = f"/v2/models/{model}/infer"
    return server.post(path, json.dumps(body).encode(), "application/json")


def test_json_may_be_nested_otherwise_than_its_shape(examples: Server) -> None:
    def tensor(name: str, data: Any) -> dict[str, Any]:
        return {"name": name, "datatype": "INT32", "shape": [1, 16], "data": data}

    inputs = [tensor("INPUT0", A.reshape(4, 2, 2).tolist()), tensor("INPUT1", B[0].tolist())]
    status, answer = post(examples, "simple", inputs=inputs)
    assert (status, answer["outputs"][0]["data"]) == (200, (A + B).ravel().tolist())


def test_an_empty_list_of_inputs_is_told_which_are_missing(examples: Server) -> None:
    status, answer = post(examples, "simple", inputs=[])
    assert status == 400
    assert "missing required input(s) ['INPUT0','INPUT1']" in answer["error"]


def test_a_body_over_the_limit_names_both_settings(explicit: Server) -> None:
    status, answer = post(explicit, "simple", inputs=[], id="x" * 100_000)
    assert status == 413
    assert "(max_request_bytes); raise max_inflight_bytes with it" in answer["error"]


def test_metrics_have_tritons_names(examples: Server) -> None:
    tensors = [
        {"name": f"INPUT{i}", "datatype": "INT8", "shape": [2, 16], "data": [1] * 32}
        for i in (0, 1)
    ]
    labels = '{model="simple_int8",version="1"}'

    def counted(name: str) -> float:
        for line in examples.get("/metrics")[1].decode().splitlines():
            if line.startswith(f"nv_inference_{name}{labels} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    names = ("request_success", "count", "exec_count", "request_duration_us")
    before = [counted(name) for name in names]
    assert post(examples, "simple_int8", inputs=tensors)[0] == 200
    success, rows, runs, duration = (counted(n) - b for n, b in zip(names, before, strict=True))
    assert (success, rows, runs) == (1, 2, 1)
    assert duration > 0
    assert post(examples, "simple_int8", inputs=tensors[:1])[0] == 400
    text = examples.get("/metrics")[1].decode()
    assert 'nv_inference_request_failure{model="simple_int8"' in text
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    others = [f"{part}_duration_us" for part in parts]
    assert [name for name in others if f"nv_inference_{name}{labels} " not in text] == []


def test_only_the_models_asked_for_are_loaded(explicit: Server) -> None:
    client = Triton("http", explicit)
    try:
        assert client.is_server_ready()
        states = {entry["name"]: entry for entry in client.get_model_repository_index()}
        assert {name for name, e in states.items() if e["state"] == "READY"} == {
            "simple",
            "simple_int8",
        }
        assert "load_model" in states["simple_string"]["reason"]
        client.load_model("simple_string")
        assert client.is_model_ready("simple_string")
        client.unload_model("simple")
        assert client.is_server_ready()
        assert not client.is_model_ready("simple")
        client.load_model("simple")
    finally:
        client.close()
    assert b"nv_inference" not in explicit.get("/metrics")[1]


@pytest.mark.parametrize("kind", OVER_GRPC)
def test_grpc_says_why_a_model_cannot_be_loaded(examples: Server, models: Path, kind: str) -> None:
    (models / "broken" / "1").mkdir(parents=True, exist_ok=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    client = Triton(kind, examples)
    try:
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("broken")
        assert caught.value.message().startswith("failed to load 'broken', versions that are not")
    finally:
        client.close()
        shutil.rmtree(models / "broken")
