"""How a model is served, in the terms of the protocol's model configuration.

Source: Triton's "Model Configuration Extension"; the fields are those of proto/inference/
model_config.proto, enums by their names.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from service.core.batching import BatchLimits
from service.core.datatypes import BYTES
from service.core.tensors import TensorSpec
from service.repository.models import ServedModel
from service.repository.versions import MODEL_FILE
from service.runtime.session import CPU

PLATFORM = "onnxruntime_onnx"


class LatestVersions(TypedDict):
    num_versions: int


class VersionPolicy(TypedDict):
    latest: LatestVersions


class TensorConfig(TypedDict):
    """An input or output; `dims` leaves out the batch dimension of a batchable model."""

    name: str
    data_type: str
    dims: list[int]


class InstanceGroup(TypedDict):
    name: str
    kind: str
    count: int
    gpus: list[int]


class Parameter(TypedDict):
    string_value: str


class QueuePolicy(TypedDict):
    allow_timeout_override: bool
    max_queue_size: int


class DynamicBatching(TypedDict):
    max_queue_delay_microseconds: int
    preserve_ordering: bool
    default_queue_policy: QueuePolicy


class ModelConfig(TypedDict):
    """A ModelConfig message as a dictionary; `dynamic_batching` only for a batchable model."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    instance_group: list[InstanceGroup]
    default_model_filename: str
    parameters: dict[str, Parameter]
    dynamic_batching: NotRequired[DynamicBatching]


def configuration(
    model: ServedModel, limits: BatchLimits, *, versions: int, workers: int
) -> ModelConfig:
    """The configuration of a loaded model.

    `versions` is how many of its newest versions stay loaded, `workers` how many processes run it.
    """
    session = model.session
    limits = limits.within(session.batching)
    is_cpu = session.provider == CPU
    config: ModelConfig = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": versions}},
        "max_batch_size": limits.max_batch_size if session.batchable else 0,
        "input": [_tensor(spec, session.batchable) for spec in session.inputs],
        "output": [_tensor(spec, session.batchable) for spec in session.outputs],
        "instance_group": [
            {
                "name": f"{model.name}_0",
                "kind": "KIND_CPU" if is_cpu else "KIND_GPU",
                "count": workers,
                "gpus": [] if is_cpu else [0],
            }
        ],
        "default_model_filename": MODEL_FILE,
        "parameters": {
            "execution_provider": {"string_value": session.provider},
            "sha256": {"string_value": model.sha256},
            "batching": {"string_value": session.batching.reason},
        },
    }
    if session.batchable:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(limits.max_delay_s * 1e6),
            "preserve_ordering": False,
            "default_queue_policy": {
                "allow_timeout_override": True,
                "max_queue_size": limits.max_queue,
            },
        }
    return config


def _tensor(spec: TensorSpec, batchable: bool) -> TensorConfig:
    datatype = "STRING" if spec.datatype == BYTES else spec.datatype
    dims = spec.shape[1:] if batchable else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}
