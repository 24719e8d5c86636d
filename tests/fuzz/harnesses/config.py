"""The files of a model: config.pbtxt (the first byte is even) and model.json (odd)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from google.protobuf import text_format

from service.core.errors import ModelLoadError
from service.repository.card import read as read_card
from service.repository.triton_config import read
from service.repository.versions import CONFIG_FILE
from service.stubs.inference.model_config_pb2 import ModelConfig
from tests.conftest import SHIPPED_MODELS

CI_RUNS = 5_000
_FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "m"
_FOLDER.mkdir()
_CONFIG = """name: "m"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }]
output { name: "y" data_type: TYPE_INT64 dims: 1 }
instance_group [{ count: 1 kind: KIND_CPU gpus: [0] }]
dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 }
parameters { key: "a" value { string_value: "b" } }
# a comment
version_policy: { specific { versions: [1, 2] } }
"""
SEEDS = [
    b"\0" + _CONFIG.encode(),
    *(
        b"\0max_batch_size: " + size
        for size in (b"0", b"-1", b"0x10", b"9999999999", b"1.5", b"'1'")
    ),
    b"\0max_batch_size: 1 max_batch_size: 2",
    b"\0" + b"ensemble_scheduling { step { " * 60,
    b"""\0input { name: "x" dims: [ 1, -1, 3 ] format: FORMAT_NHWC reshape { shape: [ -1, 3 ] } }
output { name: "y" dims: 1 reshape { } label_filename: "labels.txt" }
default_model_filename: "a/../b" version_policy { latest { num_versions: 1 } } runtime: "r"
model_warmup { batch_size: 2 count: 3 inputs { key: "x" value { dims: 1 random_data: true } } }
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
dynamic_batching { default_queue_policy { default_timeout_microseconds: 5 max_queue_size: 1 } }""",
    b"\1" + (SHIPPED_MODELS / "mnist" / "1" / "model.json").read_bytes()[:1500],
    b'\1{"sha256": "ab", "output_kinds": {"y": "logits"}, "labels": ["a"], "batching": true}',
    b"\1" + b"[" * 2000,
    b"\1" + b"9" * 2000,
    b'\1{"labels": {}, "output_kinds": [], "sha256": 1, "batching": null}',
]
TOKENS = [
    *(b'"labels":', b'"batching":', b'"output_kinds":', b'"sha256":', b'"logits"', b"NaN"),
    *(b"max_batch_size:", b"input", b"TYPE_FP32", b"dims:", b"{", b"}", b"<", b">", b"\\x", b"'"),
    *(b"reshape {", b"shape:", b"-1", b"format: FORMAT_NCHW", b"model_warmup {", b"..", b"/"),
    *(b"[type.googleapis.com/a]", b"0x", b"-inf", b"true"),
]


def check(data: bytes) -> None:
    content = data[1:]
    path = _FOLDER / CONFIG_FILE
    path.write_bytes(content)
    if data[:1] and data[0] % 2:
        _check_card(path, content)
    else:
        _check_config(path, content)


def _check_config(path: Path, content: bytes) -> None:
    try:
        read_config = read(path.parent)
    except ModelLoadError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 500
        return
    size = read_config.max_batch_size
    config = text_format.Parse(content.decode(), ModelConfig())
    assert size is None or size == config.max_batch_size >= 0
    assert size is not None or config.max_batch_size == 0
    files = [read_config.model_file, *(output.label_filename for output in read_config.outputs)]
    assert all(".." not in Path(file).parts and not file.startswith("/") for file in files)
    assert 0 <= read_config.intra_op_threads <= 1024
    for name in read_config.ignored:
        assert name.split(".")[0] in ModelConfig.DESCRIPTOR.fields_by_name


def _check_card(path: Path, content: bytes) -> None:
    try:
        card = read_card(path, path)
    except ModelLoadError as error:
        assert str(path) in str(error)
        return
    fields = json.loads(content)
    assert card.sha256 == fields.get("sha256", "")
    assert list(card.labels) == fields.get("labels", [])
    assert all(isinstance(label, str) for label in card.labels)
    assert card.batching is fields.get("batching")
    for output, kind in card.output_kinds.items():
        assert card.kind(output) == kind
        assert kind in ("logits", "probabilities")
