from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from service.core.batching import Batching, BatchLimits
from service.core.tensors import TensorSpec
from service.repository.card import Card
from service.repository.model_config import configuration
from service.repository.models import ServedModel
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


def config_of(session: FakeSession) -> Any:
    fields: dict[str, Any] = dict.fromkeys(ServedModel._fields)
    fields |= {"name": "mnist", "version": "3", "card": Card(), "sha256": "ab"}
    model = ServedModel(**fields | {"session": session})
    return configuration(model, LIMITS, versions=2, workers=4)


def test_a_batchable_model_leaves_out_the_batch_dimension() -> None:
    config = config_of(FakeSession())
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [28, -1]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": []}]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 1500
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 100


def test_a_model_without_a_batch_has_whole_shapes_and_no_batching() -> None:
    config = config_of(FakeSession(batchable=False))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [5, 28, -1]
    assert config["output"][0]["dims"] == [5]
    assert "dynamic_batching" not in config


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
    assert config["instance_group"] == [{"name": "mnist_0", "kind": kind, "count": 4, "gpus": gpus}]
    assert config["parameters"]["execution_provider"] == {"string_value": provider}


@pytest.mark.parametrize("batchable", [True, False])
def test_the_configuration_is_a_message_of_the_protocol(batchable: bool) -> None:
    # In a process of its own: the stubs of tritonclient, which other tests import, define the same
    # package.
    check = """
import json, sys
from google.protobuf import json_format
from service.stubs.inference.model_config_pb2 import ModelConfig
config = json.load(sys.stdin)
message = ModelConfig(**config)
assert message == json_format.ParseDict(config, ModelConfig())
assert message.version_policy.latest.num_versions == 2
assert message.parameters["sha256"].string_value == "ab"
assert message.HasField("dynamic_batching") == ("dynamic_batching" in config)
"""
    config = json.dumps(config_of(FakeSession(batchable=batchable)))
    subprocess.run([sys.executable, "-c", check], input=config, text=True, check=True)


def test_the_order_of_the_fields_is_that_of_the_answer() -> None:
    assert list(config_of(FakeSession())) == [
        "name",
        "platform",
        "backend",
        "version_policy",
        "max_batch_size",
        "input",
        "output",
        "instance_group",
        "default_model_filename",
        "parameters",
        "dynamic_batching",
    ]
