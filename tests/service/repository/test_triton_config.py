"""config.pbtxt as Triton's users write it.

Read in a process of its own: the stubs of tritonclient, which other tests import, define the same
package.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.service.linear_model import publish_linear

READ = """
import json, pathlib, sys
from collections.abc import Mapping
from service.core.errors import ModelLoadError
from service.repository.triton_config import read
results = []
def plain(value):
    if hasattr(value, "_asdict"):
        return {key: plain(each) for key, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
for path in json.load(sys.stdin):
    try:
        results.append(plain(read(pathlib.Path(path))))
    except ModelLoadError as error:
        results.append(error.message)
json.dump(results, sys.stdout)
"""

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


def results_of(folder: Path, contents: Sequence[str | bytes]) -> list[Any]:
    """What is read from files with these contents: a configuration's fields, or the error."""
    paths = []
    for number, content in enumerate(contents):
        path = folder / str(number) / "config.pbtxt"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(path.parent))
    return read_all(paths)


def read_all(folders: list[str]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(folders),
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    results: list[Any] = json.loads(done.stdout)
    return results


def test_max_batch_size_is_read_and_an_absent_one_is_not_zero(tmp_path: Path) -> None:
    cases: dict[str, int | None] = {
        "max_batch_size: 0": 0,
        "max_batch_size: 1": 1,
        'name: "2"\nmax_batch_size : 64 # rows': 64,
        "max_batch_size: 2147483647": 2147483647,
        "": None,
        "# max_batch_size: 4": None,
        'metric_tags { key: "max_batch_size: 4" value: "" }': None,
        EVERYTHING: 8,
        EVERYTHING + DYNAMIC: 8,
        EVERYTHING + SEQUENCE: 8,
        ENSEMBLE: None,
    }
    results = results_of(tmp_path, list(cases))
    assert [result["max_batch_size"] for result in results] == list(cases.values())


def test_every_field_with_an_effect_is_read_and_every_other_is_named(tmp_path: Path) -> None:
    plain, dynamic, sequence, ensemble = results_of(
        tmp_path, [EVERYTHING, EVERYTHING + DYNAMIC, EVERYTHING + SEQUENCE, ENSEMBLE]
    )
    x, s = plain["inputs"]
    assert (x["name"], x["datatype"], x["dims"]) == ("x", "FP32", [3, -1, -1])
    assert (x["format"], x["reshape"], x["optional"]) == ("FORMAT_NCHW", [3, -1, 1, -1], True)
    assert (s["name"], s["datatype"], s["dims"], s["reshape"]) == ("s", "BYTES", [1], None)
    (y,) = plain["outputs"]
    assert (y["datatype"], y["dims"], y["reshape"]) == ("BF16", [1], [])
    assert y["label_filename"] == "labels.txt"
    assert plain["version_policy"]["specific"] == [1, 3]
    assert plain["model_file"] == "other.onnx"
    assert plain["parameters"] == {"k": "v", "intra_op_thread_count": "2", "session.x": "1"}
    (warm_up,) = plain["warm_ups"]
    assert (warm_up["name"], warm_up["rows"], warm_up["repeats"]) == ("w", 1, 2)
    assert warm_up["inputs"] == {
        "x": {"datatype": "FP32", "dims": [3], "source": "random_data", "is_file": False},
        "s": {"datatype": "BYTES", "dims": [1], "source": "texts", "is_file": True},
    }
    assert plain["queue"] == {
        "max_delay_s": None,
        "max_requests": None,
        "timeout_s": None,
        "obeys_timeouts": True,
    }
    assert plain["problem"] == ""
    assert sorted(plain["ignored"]) == [
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
    assert dynamic["queue"] == {
        "max_delay_s": 1e-4,
        "max_requests": 9,
        "timeout_s": 5e-6,
        "obeys_timeouts": False,
    }
    assert sorted(set(dynamic["ignored"]) - set(plain["ignored"])) == [
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.priority_queue_policy",
    ]
    assert set(sequence["ignored"]) - set(plain["ignored"]) == {"sequence_batching"}
    assert ensemble["ignored"] == ["ensemble_scheduling"]


# Sets one field of the configuration after another, and prints what is then read: the ignored
# fields, or the error. The names of messages with fields of either kind come as input.
EACH_FIELD = """
import json, pathlib, sys
from google.protobuf import text_format
from service.core.errors import ModelLoadError
from service.repository.triton_config import read
from service.stubs.inference.model_config_pb2 import ModelConfig

divided = sys.argv[2].split()

def set_field(message, field):
    value = getattr(message, field.name)
    entry = field.message_type
    if entry and entry.GetOptions().map_entry:
        key = 1 if entry.fields_by_name["key"].cpp_type != field.CPPTYPE_STRING else "k"
        if entry.fields_by_name["value"].message_type:
            value[key].SetInParent()
        else:
            value[key] = "v"
    elif entry:
        inner = value.add() if field.is_repeated else value
        set_field(inner, entry.fields[0])
        return inner
    else:
        scalar = "v" if field.cpp_type == field.CPPTYPE_STRING else 1
        value.append(scalar) if field.is_repeated else setattr(message, field.name, scalar)

def results_of(config, message, prefix):
    for field in message.DESCRIPTOR.fields:
        copy = type(config)()
        path = prefix + field.name
        target = copy
        for name in prefix.split(".")[:-1]:
            value = getattr(target, name)
            target = value.add(name="v") if name in ("input", "output") else value
            target.SetInParent()
        inner = set_field(target, field)
        if path in divided:
            yield from results_of(copy, inner, path + ".")
            continue
        pathlib.Path(sys.argv[1], "config.pbtxt").write_text(text_format.MessageToString(copy))
        try:
            yield path, list(read(pathlib.Path(sys.argv[1])).ignored)
        except ModelLoadError as error:
            yield path, error.message

json.dump(dict(results_of(ModelConfig(), ModelConfig(), "")), sys.stdout)
"""


def test_the_table_of_fields_says_of_each_what_the_server_does(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (honoured|warned) \|", text, re.M)
    table = {path: kind for paths, kind in rows for path in re.findall(r"`([^`]+)`", paths)}
    divided = {path.rpartition(".")[0] for path in table} - {""}
    divided |= {path.partition(".")[0] for path in divided}
    done = subprocess.run(
        [sys.executable, "-c", EACH_FIELD, str(tmp_path), " ".join(divided)],
        text=True,
        capture_output=True,
        check=True,
    )
    results: dict[str, list[str] | str] = json.loads(done.stdout)
    assert results.keys() == table.keys()
    assert len(results) > 40
    for path, result in results.items():
        # A value that is refused for what it is has an effect.
        assert (result == [path]) is (table[path] == "warned"), (path, result)
        assert isinstance(result, str) or result in ([], [path])


def test_version_policies_are_read(tmp_path: Path) -> None:
    latest, every, none = results_of(
        tmp_path,
        ["version_policy { latest { num_versions: 3 } }", "version_policy { all { } }", ""],
    )
    assert latest["version_policy"] == {"latest": 3, "specific": []}
    assert every["version_policy"] == {"latest": sys.maxsize, "specific": []}
    assert none["version_policy"] is None


def test_a_queue_policy_that_allows_it_lets_requests_have_their_own_timeouts(
    tmp_path: Path,
) -> None:
    allowed, closed, silent = results_of(
        tmp_path,
        [
            "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
            "dynamic_batching { default_queue_policy { max_queue_size: 0 } }",
            "dynamic_batching { }",
        ],
    )
    assert allowed["queue"]["obeys_timeouts"] is silent["queue"]["obeys_timeouts"] is True
    assert closed["queue"]["obeys_timeouts"] is False
    assert closed["queue"]["max_requests"] is None


MALFORMED: list[tuple[str | bytes, str]] = [
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
    ('name: "other"', "name is 'other', but the folder of the model is '"),
    ('platform: "ensemble"', "platform 'ensemble' is not supported"),
    ('backend: "python"', "backend 'python' is not supported; this server runs 'onnxruntime'"),
    ("input { dims: 1 }", "an input has no name"),
    ("output [ { name: 'y' }, { name: 'y' } ]", "two outputs have one name"),
    ("input { name: 'x' dims: [ 0 ] }", "dims of 'x' must be sizes from 1 up"),
    ("input { name: 'x' dims: 4 reshape { shape: [ 3 ] } }", "reshape of 'x' is [3]"),
    ("input { name: 'x' dims: -1 reshape { shape: [ -1, 2 ] } }", "reshape of 'x'"),
    ("input { name: 'x' dims: 4 format: FORMAT_NHWC }", "format of 'x' needs three dims"),
    ("output { name: 'y' label_filename: '../labels' }", "label_filename of 'y' is '../lab"),
    ("default_model_filename: '/m.onnx'", "default_model_filename is '/m.onnx'"),
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
]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What is read from each of the malformed files, in one process."""
    return results_of(tmp_path_factory.mktemp("malformed"), [content for content, _ in MALFORMED])


@pytest.mark.parametrize("number", range(len(MALFORMED)), ids=[reason for _, reason in MALFORMED])
def test_a_malformed_file_is_one_clear_error(errors: list[Any], number: int) -> None:
    error = errors[number]
    assert isinstance(error, str)
    assert MALFORMED[number][1] in error
    assert f"/{number}/config.pbtxt" in error
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
    for name in ("folder", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "config.pbtxt").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.pbtxt")
    missing, folder, pipe = read_all([str(tmp_path / name) for name in ("none", "folder", "pipe")])
    assert missing["max_batch_size"] is None
    assert "cannot read" in folder
    assert "not a regular file" in pipe
