"""How a model is served, in the words of the protocol's model configuration.

Source: Triton's "Model Configuration Extension"; the fields are those of proto/inference/
model_config.proto.
"""

from __future__ import annotations

from typing import Any

from service.core.batching import BatchLimits
from service.core.datatypes import BYTES
from service.core.tensors import TensorSpec
from service.repository.models import ServedModel
from service.repository.versions import MODEL_FILE
from service.runtime.session import CPU

PLATFORM = "onnxruntime_onnx"


def configuration(
    model: ServedModel, limits: BatchLimits, versions: int, workers: int
) -> dict[str, Any]:
    """The configuration as the values of a ModelConfig message, enums by their names."""
    session = model.session
    batchable = session.batchable
    kind = "KIND_CPU" if session.provider == CPU else "KIND_GPU"
    gpus = [] if session.provider == CPU else [0]
    config = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": versions}},
        "max_batch_size": limits.max_batch_size if batchable else 0,
        "input": [_tensor(spec, batchable) for spec in session.inputs],
        "output": [_tensor(spec, batchable) for spec in session.outputs],
        "instance_group": [
            {"name": f"{model.name}_0", "kind": kind, "count": workers, "gpus": gpus}
        ],
        "default_model_filename": MODEL_FILE,
        "parameters": {
            "execution_provider": {"string_value": session.provider},
            "sha256": {"string_value": model.sha256},
        },
    }
    if batchable:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(limits.max_delay_s * 1e6),
            "preserve_ordering": False,
            "default_queue_policy": {
                "allow_timeout_override": True,
                "max_queue_size": limits.max_queue,
            },
        }
    return config


def _tensor(spec: TensorSpec, batchable: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == BYTES else spec.datatype
    dims = spec.shape[1:] if batchable else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}
