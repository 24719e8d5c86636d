"""config.pbtxt as Triton's users write it. Runs in a process of its own (conftest.py)."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from service.core.batching import Batcher, BatchLimits, QueueLimits
from service.core.errors import ModelLoadError
from service.repository.models import Repository
from service.repository.triton_config import (
    TensorConfig,
    TritonConfig,
    TritonConfigs,
    VersionPolicy,
    WarmUp,
    WarmUpInput,
    read,
)
from service.runtime.session import SessionOptions
from service.stubs.inference.model_config_pb2 import ModelConfig
from tests.conftest import ROOT
from tests.service.linear_model import publish_linear

# Each of Triton's scheduling choices, and every other field once.
EVERYTHING = """
# A comment.
platform: "onnxruntime_onnx" backend: "onnxruntime" runtime: "libtriton.so"
version_policy: { specific: { versions: [1, 3] } }
max_batch_size: 8
input [
  { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1, -1 ]
    reshape: { shape: [ 3, -1, 1, -1 ] } is_shape_tensor: false
    allow_ragged_batch: true optional: true is_non_linear_format_io: false },
  { name: "s", data_type: TYPE_STRING, dims: [ 1 ] }
]
output { name: "y" data_type: TYPE_BF16 dims: 1 label_filename: "labels.txt" reshape { } }
batch_input { kind: BATCH_ITEM_SHAPE_FLATTEN target_name: "n" data_type: TYPE_INT32
              source_input: "x" }
batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }
optimization {
  graph { level: -1 } priority: PRIORITY_MAX
  cuda { graphs: true busy_wait_events: true output_copy_stream: true
         graph_spec { batch_size: 4 input { key: "x" value { dim: [ 3, 8, 8 ] } }
                      graph_lower_bound { batch_size: 1 } } }
  execution_accelerators { gpu_execution_accelerator { name: "tensorrt"
                             parameters { key: "precision_mode" value: "FP16" } } }
  input_pinned_memory { enable: true } gather_kernel_buffer_threshold: 0 eager_batching: true
}
instance_group [ { name: "g" kind: KIND_GPU count: 2 gpus: [ 0, 1 ] profile: "p" passive: false
                   host_policy: "h" secondary_devices { kind: KIND_NVDLA device_id: 1 }
                   rate_limiter { resources { name: "r" global: true count: 2 } priority: 1 } } ]
default_model_filename: "other.onnx"
cc_model_filenames { key: "7.5" value: "m.onnx" } metric_tags { key: "a" value: "b" }
parameters [ { key: "k" value: { string_value: "v" } },
             { key: "intra_op_thread_count" value { string_value: "2" } },
             { key: "session.x" value { string_value: "1" } } ]
model_warmup { name: "w" batch_size: 1 count: 2
               inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 random_data: true } }
               inputs { key: "s"
                        value { data_type: TYPE_STRING dims: 1 input_data_file: "texts" } } }
model_operations { op_library_filename: "lib.so" } model_transaction_policy { decoupled: false }
model_repository_agents { agents { name: "checksum" parameters { key: "a" value: "b" } } }
response_cache { enable: false }
model_metrics { metric_control { metric_identifier { family: "f" }
                                 histogram_options { buckets: [ 0.1, 1 ] } } }
"""
DYNAMIC = """
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100
  preserve_ordering: true priority_levels: 2 default_priority_level: 1
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 max_queue_size: 9 }
  priority_queue_policy { key: 1 value { allow_timeout_override: true } } }
"""
SEQUENCE = """
sequence_batching { max_sequence_idle_microseconds: 5 iterative_sequence: false
  oldest { max_candidate_sequences: 4 preferred_batch_size: 2 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: -1
          initial_state { data_type: TYPE_FP32 dims: 1 zero_data: true name: "n" } } }
"""
ENSEMBLE = """
ensemble_scheduling { step { model_name: "m" model_version: -1 input_map { key: "a" value: "b" }
                             output_map { key: "c" value: "d" } } }
"""


def config_of(folder: Path, content: str | bytes) -> TritonConfig:
    """What is read from a file with this content. Raises ModelLoadError."""
    path = folder / "config.pbtxt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(folder)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ("max_batch_size: 0", 0),
        ("max_batch_size: 1", 1),
        ('backend: "onnxruntime"\nmax_batch_size : 64 # rows', 64),
        ("max_batch_size: 2147483647", 2147483647),
        ("", None),
        ("# max_batch_size: 4", None),
        ('metric_tags { key: "max_batch_size: 4" value: "" }', None),
        (EVERYTHING, 8),
        (EVERYTHING + DYNAMIC, 8),
        (EVERYTHING + SEQUENCE, 8),
        (ENSEMBLE, None),
    ],
)
def test_max_batch_size_is_read_and_an_absent_one_is_not_zero(
    tmp_path: Path, content: str, size: int | None
) -> None:
    assert config_of(tmp_path, content).max_batch_size == size


def test_every_field_with_an_effect_is_read_and_every_other_is_named(tmp_path: Path) -> None:
    plain = config_of(tmp_path, EVERYTHING)
    assert plain.inputs == [
        TensorConfig(
            name="x",
            datatype="FP32",
            dims=(3, -1, -1),
            format="FORMAT_NCHW",
            reshape=(3, -1, 1, -1),
            optional=True,
        ),
        TensorConfig("s", "BYTES", (1,)),
    ]
    assert plain.outputs == [
        TensorConfig("y", "BF16", (1,), reshape=(), label_filename="labels.txt")
    ]
    assert plain.version_policy == VersionPolicy(specific=(1, 3))
    assert plain.model_file == "other.onnx"
    assert plain.parameters == {"k": "v", "intra_op_thread_count": "2", "session.x": "1"}
    assert plain.intra_op_threads == 2
    inputs = {
        "x": WarmUpInput("FP32", (3,), "random_data"),
        "s": WarmUpInput("BYTES", (1,), "texts", is_file=True),
    }
    assert plain.warm_ups == [WarmUp("w", rows=1, repeats=2, inputs=inputs)]
    assert plain.queue == QueueLimits()
    assert plain.problem == ""
    assert sorted(plain.ignored) == [
        "batch_input",
        "batch_output",
        "cc_model_filenames",
        "input.allow_ragged_batch",
        "instance_group",
        "metric_tags",
        "model_metrics",
        "model_operations",
        "model_repository_agents",
        "optimization",
        "parameters.session.x",
        "runtime",
    ]
    dynamic = config_of(tmp_path, EVERYTHING + DYNAMIC)
    assert dynamic.queue == QueueLimits(
        max_delay_s=1e-4,
        preferred_rows=(4, 8),
        max_requests=9,
        timeout_s=5e-6,
        obeys_timeouts=False,
    )
    assert sorted(set(dynamic.ignored) - set(plain.ignored)) == [
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.priority_queue_policy",
    ]
    sequence = config_of(tmp_path, EVERYTHING + SEQUENCE)
    assert set(sequence.ignored) - set(plain.ignored) == {"sequence_batching"}
    assert config_of(tmp_path, ENSEMBLE).ignored == ["ensemble_scheduling"]


def set_field(message: Any, field: Any) -> Any:
    """Set a field to another value than its default; returns a message that was set."""
    value, entry = getattr(message, field.name), field.message_type
    scalar: Any = "v" if field.cpp_type == field.CPPTYPE_STRING else 1
    if entry and entry.GetOptions().map_entry:
        key = entry.fields_by_name["key"]
        if entry.fields_by_name["value"].message_type:
            value["k" if key.cpp_type == key.CPPTYPE_STRING else 1].SetInParent()
        else:
            value["k"] = "v"
    elif entry:
        inner = value.add() if field.is_repeated else value
        set_field(inner, entry.fields[0])
        return inner
    elif field.is_repeated:
        value.append(scalar)
    else:
        setattr(message, field.name, scalar)
    return None


def each_field(divided: set[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """One file per field, which sets it alone; messages in `divided` count by their fields."""
    messages: Any = ModelConfig.DESCRIPTOR
    for name in prefix.split(".")[:-1]:
        messages = messages.fields_by_name[name].message_type
    for field in messages.fields:
        path = prefix + field.name
        if path in divided:
            yield from each_field(divided, path + ".")
            continue
        config = target = ModelConfig()
        for name in prefix.split(".")[:-1]:
            value: Any = getattr(target, name)
            target = value.add(name="v") if name in ("input", "output") else value
            target.SetInParent()
        set_field(target, field)
        yield path, text_format.MessageToString(config)


def test_the_table_of_fields_says_of_each_what_the_server_does(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (honoured|warned) \|", text, re.M)
    table = {path: kind for paths, kind in rows for path in re.findall(r"`([^`]+)`", paths)}
    divided = {path.rpartition(".")[0] for path in table} - {""}
    divided |= {path.partition(".")[0] for path in divided}
    files = dict(each_field(divided))
    assert files.keys() == table.keys()
    assert len(files) > 40
    for path, content in files.items():
        try:
            ignored = list(config_of(tmp_path, content).ignored)
        except ModelLoadError:  # a value that is refused for what it is has an effect
            ignored = []
        assert ignored == ([path] if table[path] == "warned" else []), path


@pytest.mark.parametrize(
    ("content", "policy"),
    [
        ("version_policy { latest { num_versions: 3 } }", VersionPolicy(latest=3)),
        ("version_policy { all { } }", VersionPolicy(latest=sys.maxsize)),
        ("", None),
    ],
)
def test_version_policies_are_read(
    tmp_path: Path, content: str, policy: VersionPolicy | None
) -> None:
    assert config_of(tmp_path, content).version_policy == policy


@pytest.mark.parametrize(
    ("policy", "obeys"),
    [
        ("default_queue_policy { allow_timeout_override: true }", True),
        ("default_queue_policy { max_queue_size: 0 }", False),
        ("", True),
    ],
)
def test_a_queue_policy_that_allows_it_lets_requests_have_their_own_timeouts(
    tmp_path: Path, policy: str, obeys: bool
) -> None:
    config = config_of(tmp_path, f"dynamic_batching {{ {policy} }}")
    assert config.queue == QueueLimits(obeys_timeouts=obeys)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("max_batch_size: -1", "must be 0 or more"),
        ("max_batch_size: -2147483648", "must be 0 or more"),
        ("max_batch_size: many", "Couldn't parse integer"),
        ("max_batch_size: 2147483648", "out of range"),
        ("max_batch_size: 4 max_batch_size: 4", "multiple"),
        ("max_batch_size: 8.0", "Couldn't parse integer"),
        ("max_batch_sise: 4", 'no field named "max_batch_sise"'),
        ("input { name: 'x' dim: 3 }", 'no field named "dim"'),
        ("input { data_type: TYPE_FP31 }", "TYPE_FP31"),
        ("input [ { name: 'x' }", "Expected"),
        (b"\xff\xfe", "cannot read"),
        (b"#" * ((1 << 18) + 1), "more than 262144 bytes, the most that is read"),
        (b"\x00", "valid model configuration"),
        ('{"max_batch_size": 4}', "valid model configuration"),
        ("dynamic_batching { } sequence_batching { }", "scheduling_choice"),
        ('name: "other"', "name is 'other', but the folder of the model is '"),
        ('platform: "ensemble"', "platform 'ensemble' is not supported"),
        ('backend: "python"', "backend 'python' is not supported; this server runs 'onnxruntime'"),
        ("input { dims: 1 }", "an input has no name"),
        ("output [ { name: 'y' }, { name: 'y' } ]", "two outputs have one name"),
        ("input { name: 'x' dims: [ 0 ] }", "dims of 'x' must be sizes from 1 up"),
        ("input { name: 'x' dims: 4 reshape { shape: [ 3 ] } }", "reshape of 'x' is [3]"),
        ("input { name: 'x' dims: -1 reshape { shape: [ -1, 2 ] } }", "reshape of 'x'"),
        (
            "input { name: 'x' dims: [] reshape { shape: [ 1 ] } }",
            "'x' has a reshape, so it must spec",
        ),
        ("output { name: 'y' reshape { } }", "'y' has a reshape, so it must specify dims"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2, 5 ] }", "not [2, 5]"),
        ("dynamic_batching { preferred_batch_size: 0 }", "must be sizes from 1 to max_batch_size"),
        ("input { name: 'x' dims: 4 format: FORMAT_NHWC }", "format of 'x' needs three dims"),
        ("output { name: 'y' label_filename: '../labels' }", "label_filename of 'y' is '../lab"),
        ("default_model_filename: '/m.onnx'", "default_model_filename is '/m.onnx'"),
        (
            f"default_model_filename: '{'a' * 300}'",
            "default_model_filename has more than 255 bytes",
        ),
        ("version_policy { latest { } }", "num_versions must be 1 or more"),
        ("version_policy { specific { } }", "names no version"),
        ("dynamic_batching { max_queue_delay_microseconds: 1000000001 }", "at most 1000000000"),
        ("model_warmup { inputs { key: 'x' value { dims: 1 } } }", "zero_data, random_data or"),
        ("model_warmup { inputs { key: 'x' value { dims: -1 zero_data: true } } }", "from 0 up"),
        (
            "model_warmup { inputs { key: 'x' value { input_data_file: '/x' } } }",
            "must be inside the model's folder",
        ),
        (
            "parameters { key: 'intra_op_thread_count' value { string_value: 'two' } }",
            "intra_op_thread_count must be a number up to 1024",
        ),
    ],
)
def test_a_malformed_file_is_one_clear_error(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        config_of(tmp_path, content)
    error = caught.value.message
    assert reason in error
    assert str(tmp_path / "config.pbtxt") in error
    assert "\n" not in error
    assert len(error) < 400


def test_a_repository_as_triton_has_it_is_served_as_it_says(tmp_path: Path) -> None:
    for name, config in {
        "never": "max_batch_size: 0",
        "eight": "max_batch_size: 8",
        "open": 'platform: "onnxruntime_onnx"',
        "damaged": "max_batch_size: {",
    }.items():
        publish_linear(tmp_path / ".new")
        (tmp_path / ".new" / "linear").rename(tmp_path / name)
        (tmp_path / name / "config.pbtxt").write_text(config)

    async def scenario(executor: ThreadPoolExecutor) -> None:
        repository = Repository(
            tmp_path,
            SessionOptions("cpu"),
            make_batcher=lambda name, version, session: Batcher(session, BatchLimits(), executor),
            executor=executor,
        )
        await repository.refresh()
        batching = {model.name: model.session.batching for model in repository.loaded}
        assert batching.pop("open").allowed
        assert {name: (each.allowed, each.reason) for name, each in batching.items()} == {
            "never": (False, "off: max_batch_size is 0 in config.pbtxt"),
            "eight": (True, "declared in config.pbtxt"),
        }
        assert list(repository.failures) == ["damaged/1"]
        assert "is not a valid model configuration" in repository.failures["damaged/1"]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))


def test_a_missing_file_declares_nothing_and_a_folder_or_pipe_is_an_error(tmp_path: Path) -> None:
    for name in ("folder", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "config.pbtxt").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.pbtxt")
    assert read(tmp_path / "none") == TritonConfig()
    with pytest.raises(ModelLoadError, match="cannot read"):
        read(tmp_path / "folder")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        read(tmp_path / "pipe")


def test_a_configuration_is_read_again_when_its_file_changes_or_a_file_of_labels(
    tmp_path: Path,
) -> None:
    configs = TritonConfigs()
    assert configs.of(tmp_path) == (TritonConfig(), ())
    file, labels = tmp_path / "config.pbtxt", tmp_path / "labels.txt"
    file.write_text("max_batch_size: {")
    damaged, first = configs.of(tmp_path)
    assert "valid model configuration" in damaged.problem
    assert configs.of(tmp_path)[0] is damaged
    file.write_text('output { name: "y" label_filename: "labels.txt" }')
    config, second = configs.of(tmp_path)
    assert (config.problem, config.outputs[0].label_filename) == ("", "labels.txt")
    labels.write_text("a")
    same, third = configs.of(tmp_path)
    assert same is config
    labels.write_text("a and b")
    fourth = configs.of(tmp_path)[1]
    assert len({first, second, third, fourth}) == 4
    file.unlink()
    assert configs.of(tmp_path) == (TritonConfig(), ())
