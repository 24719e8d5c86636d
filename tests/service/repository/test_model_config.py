from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from service.core.batching import Batching, BatchLimits, QueueLimits
from service.core.tensors import TensorSpec
from service.repository.card import Card
from service.repository.model_config import configuration
from service.repository.models import ServedModel
from service.repository.triton_config import (
    TensorConfig,
    TritonConfig,
    VersionPolicy,
    WarmUp,
    WarmUpInput,
)
from service.runtime.session import CPU, CUDA

LIMITS = BatchLimits(max_batch_size=32, max_queue=100, max_delay_s=0.0015, inline_budget_s=0.001)


class FakeSession:
    """A session of one FP32 input and one BYTES output, without ONNX Runtime."""

    def __init__(self, provider: str = CPU, batchable: bool = True) -> None:
        self.provider = provider
        self.batchable = batchable
        self.batching = Batching(batchable, "a reason")
        rows = -1 if batchable else 5
        self.inputs = (TensorSpec("x", "FP32", (rows, 28, -1)),)
        self.outputs = (TensorSpec("y", "BYTES", (rows,)),)
        self.defaults = (TensorSpec("bias", "FP32", (28,), is_optional=True),)


def config_of(session: FakeSession, declared: TritonConfig | None = None) -> Any:
    fields: dict[str, Any] = dict.fromkeys(ServedModel._fields)
    fields |= {"name": "mnist", "version": "3", "card": Card(), "sha256": "ab"}
    fields["config"] = declared or TritonConfig()
    model = ServedModel(**fields | {"session": session})
    return configuration(model, LIMITS, versions=2, workers=4)


def test_a_batchable_model_leaves_out_the_batch_dimension() -> None:
    config = config_of(FakeSession())
    assert config["max_batch_size"] == 32
    assert config["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [28, -1],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert config["output"] == [
        {
            "name": "y",
            "data_type": "TYPE_STRING",
            "dims": [],
            "label_filename": "",
            "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 1500
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 100


def test_a_model_without_a_batch_has_whole_shapes_and_no_batching() -> None:
    config = config_of(FakeSession(batchable=False))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [5, 28, -1]
    assert config["output"][0]["dims"] == [5]
    assert "dynamic_batching" not in config


def test_a_declared_batch_whose_size_is_fixed_is_left_out_too() -> None:
    config = config_of(FakeSession(batchable=False), TritonConfig(max_batch_size=8))
    assert config["max_batch_size"] == 5
    assert (config["input"][0]["dims"], config["output"][0]["dims"]) == ([28, -1], [])


def test_a_model_that_is_batched_up_to_a_size_says_so() -> None:
    session = FakeSession()
    session.batching = Batching(True, "declared in config.pbtxt", max_rows=5)
    config = config_of(session)
    assert config["max_batch_size"] == 5
    assert config["parameters"]["batching"] == {"string_value": "declared in config.pbtxt"}


@pytest.mark.parametrize(
    ("provider", "kind", "gpus"), [(CPU, "KIND_CPU", []), (CUDA, "KIND_GPU", [0])]
)
def test_the_instance_group_names_the_device(provider: str, kind: str, gpus: list[int]) -> None:
    config = config_of(FakeSession(provider))
    (group,) = config["instance_group"]
    assert (group["name"], group["kind"], group["count"], group["gpus"]) == (
        *("mnist_0", kind, 4),
        gpus,
    )
    assert config["parameters"]["execution_provider"] == {"string_value": provider}


DECLARED = TritonConfig(
    inputs=[
        TensorConfig("x", format="FORMAT_NHWC", reshape=(28, -1, 1), optional=True),
        TensorConfig("bias", optional=True),
    ],
    outputs=[TensorConfig("y", label_filename="labels.txt", reshape=())],
    model_file="other.onnx",
    parameters={"a": "b", "sha256": "of the user"},
    warm_ups=[
        WarmUp(
            name="w",
            rows=2,
            repeats=3,
            inputs={
                "x": WarmUpInput("FP32", (28, 28), "random_data"),
                "s": WarmUpInput("BYTES", (1,), "texts", is_file=True),
                "z": WarmUpInput("", (), "zero_data"),
            },
        )
    ],
)


def test_what_config_pbtxt_declares_is_in_the_answer() -> None:
    config = config_of(FakeSession(), DECLARED)
    (x,), (y,), (warm_up,) = config["input"], config["output"], config["model_warmup"]
    assert (x["format"], x["optional"]) == ("FORMAT_NHWC", False)  # the model needs it
    x, bias = config_of(FakeSession(batchable=False), DECLARED)["input"]
    assert (bias["name"], bias["optional"], bias["dims"]) == ("bias", True, [28])
    assert x["reshape"] == {"shape": [28, -1, 1]}
    assert (y["label_filename"], y["reshape"]) == ("labels.txt", {"shape": []})
    assert config["default_model_filename"] == "other.onnx"
    assert config["parameters"]["a"] == {"string_value": "b"}
    assert config["parameters"]["sha256"] == {"string_value": "ab"}
    assert warm_up == {
        "name": "w",
        "batch_size": 2,
        "inputs": {
            "x": {"data_type": "TYPE_FP32", "dims": [28, 28], "random_data": True},
            "s": {"data_type": "TYPE_STRING", "dims": [1], "input_data_file": "texts"},
            "z": {"data_type": "TYPE_INVALID", "dims": [], "zero_data": True},
        },
        "count": 3,
    }


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (None, {"latest": {"num_versions": 2}}),
        (VersionPolicy(latest=5), {"latest": {"num_versions": 5}}),
        (VersionPolicy(), {"all": {}}),
        (VersionPolicy(specific=(3, 1)), {"specific": {"versions": [3, 1]}}),
    ],
)
def test_the_version_policy_is_that_of_the_file_or_the_setting(
    policy: VersionPolicy | None, fields: Any
) -> None:
    config = config_of(FakeSession(), TritonConfig(version_policy=policy))
    assert config["version_policy"] == fields


def test_the_limits_of_the_model_are_answered_instead_of_the_settings() -> None:
    session = FakeSession(batchable=False)
    limits = QueueLimits(max_delay_s=0.02, max_requests=9, timeout_s=0.5, obeys_timeouts=False)
    session.batching = session.batching._replace(queue=limits)
    dynamic = config_of(session)["dynamic_batching"]
    assert dynamic["max_queue_delay_microseconds"] == 20_000
    assert dynamic["default_queue_policy"] == {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": 500_000,
        "allow_timeout_override": False,
        "max_queue_size": 9,
    }


@pytest.mark.parametrize("batchable", [True, False])
def test_the_configuration_is_a_complete_message_of_the_protocol(batchable: bool) -> None:
    # In a process of its own: the stubs of tritonclient, which other tests import, define the same
    # package. MessageToDict writes 64-bit integers as strings, as JSON has to.
    check = """
import json, sys
from google.protobuf import json_format
from service.stubs.inference.model_config_pb2 import ModelConfig
config = json.load(sys.stdin)
message = ModelConfig(**config)
assert message == json_format.ParseDict(config, ModelConfig())
assert message.parameters["sha256"].string_value == "ab"
assert message.HasField("dynamic_batching") == ("dynamic_batching" in config)
def plain(value):
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return str(value) if type(value) is int else value
complete = json_format.MessageToDict(
    message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
)
assert plain(complete) == plain(config), (complete, config)
"""
    for declared in (TritonConfig(), DECLARED):
        config = json.dumps(config_of(FakeSession(batchable=batchable), declared))
        subprocess.run([sys.executable, "-c", check], input=config, text=True, check=True)


def test_the_order_of_the_fields_is_that_of_the_answer() -> None:
    assert list(config_of(FakeSession())) == [
        "name",
        "platform",
        "backend",
        "runtime",
        "version_policy",
        "max_batch_size",
        "input",
        "output",
        "batch_input",
        "batch_output",
        "optimization",
        "instance_group",
        "default_model_filename",
        "cc_model_filenames",
        "metric_tags",
        "parameters",
        "model_warmup",
        "model_transaction_policy",
        "response_cache",
        "dynamic_batching",
    ]
