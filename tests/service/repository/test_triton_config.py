"""config.pbtxt as Triton's users write it.

Read in a process of its own: the stubs of tritonclient, which other tests import, define the same
package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.linear_model import publish_linear

READ = """
import json, pathlib, sys
from service.core.errors import ModelLoadError
from service.repository.triton_config import read_max_batch_size
results = []
for path in json.load(sys.stdin):
    try:
        results.append(read_max_batch_size(pathlib.Path(path)))
    except ModelLoadError as error:
        results.append(error.message)
json.dump(results, sys.stdout)
"""

# Each of Triton's scheduling choices, and every other field once.
EVERYTHING = """
# A comment.
name: "all" platform: "onnxruntime_onnx" backend: "onnxruntime" runtime: "libtriton.so"
version_policy: { specific: { versions: [1, 3] } }
max_batch_size: 8
input [
  { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1, -1 ]
    reshape: { shape: [ 1, 3 ] } is_shape_tensor: false allow_ragged_batch: true optional: true
    is_non_linear_format_io: false },
  { name: "s", data_type: TYPE_STRING, dims: [ 1 ] }
]
output { name: "y" data_type: TYPE_BF16 dims: 10 label_filename: "labels.txt" reshape { } }
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
default_model_filename: "model.onnx"
cc_model_filenames { key: "7.5" value: "m.onnx" } metric_tags { key: "a" value: "b" }
parameters: { key: "k" value: { string_value: "v" } }
model_warmup { name: "w" batch_size: 1 count: 2
               inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 random_data: true } } }
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


SERVE = """
import asyncio, json, pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from service.core.batching import Batcher, BatchLimits
from service.repository.models import Repository
from service.runtime.session import SessionOptions

async def main(executor):
    repository = Repository(
        pathlib.Path(sys.argv[1]),
        SessionOptions("cpu"),
        make_batcher=lambda name, version, session: Batcher(session, BatchLimits(), executor),
        executor=executor,
    )
    await repository.refresh()
    sessions = {model.name: model.session for model in repository.loaded}
    batching = {name: [s.batchable, s.batching.reason] for name, s in sessions.items()}
    json.dump([batching, dict(repository.failures)], sys.stdout)

with ThreadPoolExecutor(1) as executor:
    asyncio.run(main(executor))
"""


def results_of(folder: Path, contents: list[str | bytes]) -> list[int | str | None]:
    """What is read from files with these contents: max_batch_size, or the error."""
    paths = []
    for number, content in enumerate(contents):
        path = folder / str(number) / "config.pbtxt"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(paths),
        text=True,
        capture_output=True,
        check=True,
    )
    results: list[int | str | None] = json.loads(done.stdout)
    return results


def test_max_batch_size_is_read_and_an_absent_one_is_not_zero(tmp_path: Path) -> None:
    cases: dict[str, int | None] = {
        "max_batch_size: 0": 0,
        "max_batch_size: 1": 1,
        'name: "m"\nmax_batch_size : 64 # rows': 64,
        "max_batch_size: 2147483647": 2147483647,
        "": None,
        "# max_batch_size: 4": None,
        'name: "max_batch_size: 4"': None,
        EVERYTHING: 8,
        EVERYTHING + DYNAMIC: 8,
        EVERYTHING + SEQUENCE: 8,
        ENSEMBLE: None,
    }
    assert results_of(tmp_path, list(cases)) == list(cases.values())


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
        (b"#" * ((1 << 20) + 1), "more than 1048576 bytes"),
        (b"\x00", "valid model configuration"),
        ('{"max_batch_size": 4}', "valid model configuration"),
        ("dynamic_batching { } sequence_batching { }", "scheduling_choice"),
    ],
)
def test_a_malformed_file_is_one_clear_error(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    (error,) = results_of(tmp_path, [content])
    assert isinstance(error, str)
    assert reason in error
    assert str(tmp_path / "0" / "config.pbtxt") in error
    assert "\n" not in error
    assert len(error) < 400


def test_a_repository_as_triton_has_it_is_served_as_it_says(tmp_path: Path) -> None:
    for name, config in {
        "never": "max_batch_size: 0",
        "eight": "max_batch_size: 8",
        "open": 'platform: "onnxruntime_onnx"',
        "damaged": "max_batch_size: {",
    }.items():
        publish_linear(tmp_path / "new")
        (tmp_path / "new" / "linear").rename(tmp_path / name)
        (tmp_path / name / "config.pbtxt").write_text(config)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path)], text=True, capture_output=True, check=True
    )
    batching, failures = json.loads(done.stdout)
    assert batching.pop("open")[0] is True
    assert batching == {
        "never": [False, "off: max_batch_size is 0 in config.pbtxt"],
        "eight": [True, "declared in config.pbtxt"],
    }
    assert list(failures) == ["damaged/1"]
    assert "config.pbtxt is not a valid model configuration" in failures["damaged/1"]


def test_a_missing_file_declares_nothing_and_a_folder_or_pipe_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps([str(tmp_path / name) for name in ("none", "folder", "pipe")]),
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    missing, folder, pipe = json.loads(done.stdout)
    assert missing is None
    assert "cannot read" in folder
    assert "not a regular file" in pipe
