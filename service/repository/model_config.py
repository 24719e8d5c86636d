"""How a model is served, in the terms of the protocol's model configuration.

The answer is complete: what config.pbtxt declares, what the model has, and the default of each
field. Fields without effect have their defaults. Messages that choose between kinds of models
(`sequence_batching`, `ensemble_scheduling`, ...) are left out, as in Triton's answers.

Source: Triton's "Model Configuration Extension"; the fields are those of proto/inference/
model_config.proto, enums by their names.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from service.core.batching import BatchLimits, QueueLimits
from service.core.datatypes import BYTES
from service.core.tensors import TensorSpec
from service.repository.agreement import fixed_rows_of
from service.repository.models import ServedModel
from service.repository.triton_config import BACKEND, PLATFORM, TensorConfig, VersionPolicy, WarmUp
from service.runtime.session import CPU


class VersionPolicyFields(TypedDict, total=False):
    """One of them, with the fields of its message."""

    latest: dict[str, int]
    all: dict[str, int]
    specific: dict[str, list[int]]


class Reshape(TypedDict):
    shape: list[int]


class InputFields(TypedDict):
    """An input; `dims` leaves out the batch dimension."""

    name: str
    data_type: str
    format: str
    dims: list[int]
    reshape: NotRequired[Reshape]
    is_shape_tensor: bool
    allow_ragged_batch: bool
    optional: bool
    is_non_linear_format_io: bool


class OutputFields(TypedDict):
    """An output; `dims` leaves out the batch dimension."""

    name: str
    data_type: str
    dims: list[int]
    reshape: NotRequired[Reshape]
    label_filename: str
    is_shape_tensor: bool
    is_non_linear_format_io: bool


class InstanceGroup(TypedDict):
    name: str
    kind: str
    count: int
    gpus: list[int]
    secondary_devices: list[str]
    profile: list[str]
    passive: bool
    host_policy: str


class Parameter(TypedDict):
    string_value: str


class QueuePolicy(TypedDict):
    timeout_action: str
    default_timeout_microseconds: int
    allow_timeout_override: bool
    max_queue_size: int


class DynamicBatching(TypedDict):
    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int
    preserve_ordering: bool
    priority_levels: int
    default_priority_level: int
    default_queue_policy: QueuePolicy
    priority_queue_policy: dict[str, QueuePolicy]


class WarmUpInputFields(TypedDict, total=False):
    """An input of a sample, with one of the last three."""

    data_type: str
    dims: list[int]
    zero_data: bool
    random_data: bool
    input_data_file: str


class WarmUpFields(TypedDict):
    name: str
    batch_size: int
    inputs: dict[str, WarmUpInputFields]
    count: int


class PinnedMemory(TypedDict):
    enable: bool


class Optimization(TypedDict):
    priority: str
    input_pinned_memory: PinnedMemory
    output_pinned_memory: PinnedMemory
    gather_kernel_buffer_threshold: int
    eager_batching: bool


class TransactionPolicy(TypedDict):
    decoupled: bool


class ResponseCache(TypedDict):
    enable: bool


class ModelConfig(TypedDict):
    """A ModelConfig message as a dictionary.

    `dynamic_batching` is missing for a model that is not batched and has no limits of its own.
    """

    name: str
    platform: str
    backend: str
    runtime: str
    version_policy: VersionPolicyFields
    max_batch_size: int
    input: list[InputFields]
    output: list[OutputFields]
    batch_input: list[str]
    batch_output: list[str]
    optimization: Optimization
    instance_group: list[InstanceGroup]
    default_model_filename: str
    cc_model_filenames: dict[str, str]
    metric_tags: dict[str, str]
    parameters: dict[str, Parameter]
    model_warmup: list[WarmUpFields]
    model_transaction_policy: TransactionPolicy
    response_cache: ResponseCache
    dynamic_batching: NotRequired[DynamicBatching]


def configuration(
    model: ServedModel, limits: BatchLimits, *, versions: int, workers: int
) -> ModelConfig:
    """The configuration of a loaded model.

    `versions` is how many of its newest versions stay loaded, `workers` how many processes run it.
    """
    session, declared = model.session, model.config
    limits = limits.within(session.batching)
    # A declared batch is left out of dims as well if the model fixes its size.
    has_batch = session.batchable or bool(declared.max_batch_size)
    rows = limits.max_batch_size if session.batchable else fixed_rows_of(session) * has_batch
    is_cpu = session.provider == CPU
    inputs = {tensor.name: tensor for tensor in declared.inputs}
    outputs = {tensor.name: tensor for tensor in declared.outputs}
    parameters = {
        **declared.parameters,
        "execution_provider": session.provider,
        "sha256": model.sha256,
        "batching": session.batching.reason,
    }
    config: ModelConfig = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "runtime": "",
        "version_policy": _version_policy(declared.version_policy or VersionPolicy(versions)),
        "max_batch_size": rows,
        "input": [
            _input(spec, inputs.get(spec.name, TensorConfig(spec.name)), has_batch)
            for spec in (*session.inputs, *session.defaults)
            if spec in session.inputs or (spec.name in inputs and not session.batchable)
        ],
        "output": [
            _output(spec, outputs.get(spec.name, TensorConfig(spec.name)), has_batch)
            for spec in session.outputs
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": False},
            "output_pinned_memory": {"enable": False},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [
            {
                "name": f"{model.name}_0",
                "kind": "KIND_CPU" if is_cpu else "KIND_GPU",
                "count": workers,
                "gpus": [] if is_cpu else [0],
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": declared.model_file,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "model_warmup": [_warm_up(each) for each in declared.warm_ups],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    queue = session.batching.queue
    if session.batchable or queue != QueueLimits():
        # The settings bound the queue in rows; a config.pbtxt does so in requests, as Triton.
        config["dynamic_batching"] = {
            "preferred_batch_size": list(queue.preferred_rows),
            "max_queue_delay_microseconds": round(limits.max_delay_s * 1e6),
            "preserve_ordering": False,
            "priority_levels": 0,
            "default_priority_level": 0,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round((queue.timeout_s or 0) * 1e6),
                "allow_timeout_override": queue.obeys_timeouts,
                "max_queue_size": queue.max_requests or limits.max_queue,
            },
            "priority_queue_policy": {},
        }
    return config


def _version_policy(policy: VersionPolicy) -> VersionPolicyFields:
    if policy.specific:
        return {"specific": {"versions": list(policy.specific)}}
    if policy == VersionPolicy():
        return {"all": {}}
    return {"latest": {"num_versions": policy.latest}}


def _input(spec: TensorSpec, declared: TensorConfig, has_batch: bool) -> InputFields:
    fields: InputFields = {
        "name": spec.name,
        "data_type": _data_type(spec.datatype),
        "format": declared.format,
        "dims": _dims(spec, has_batch),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": spec.is_optional,
        "is_non_linear_format_io": False,
    }
    if declared.reshape is not None:
        fields["reshape"] = {"shape": list(declared.reshape)}
    return fields


def _output(spec: TensorSpec, declared: TensorConfig, has_batch: bool) -> OutputFields:
    fields: OutputFields = {
        "name": spec.name,
        "data_type": _data_type(spec.datatype),
        "dims": _dims(spec, has_batch),
        "label_filename": declared.label_filename,
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }
    if declared.reshape is not None:
        fields["reshape"] = {"shape": list(declared.reshape)}
    return fields


def _data_type(datatype: str) -> str:
    """The name of a datatype in the enum; TYPE_INVALID for none."""
    return f"TYPE_{'STRING' if datatype == BYTES else datatype or 'INVALID'}"


def _dims(spec: TensorSpec, has_batch: bool) -> list[int]:
    return list(spec.shape[1:] if has_batch else spec.shape)


def _warm_up(warm_up: WarmUp) -> WarmUpFields:
    inputs: dict[str, WarmUpInputFields] = {}
    for name, each in warm_up.inputs.items():
        fields: WarmUpInputFields = {
            "data_type": _data_type(each.datatype),
            "dims": list(each.dims),
        }
        if each.is_file:
            fields["input_data_file"] = each.source
        elif each.source == "zero_data":
            fields["zero_data"] = True
        else:
            fields["random_data"] = True
        inputs[name] = fields
    return {
        "name": warm_up.name,
        "batch_size": warm_up.rows,
        "inputs": inputs,
        "count": warm_up.repeats,
    }
