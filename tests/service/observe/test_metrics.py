from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.core.digits import REASONS
from service.core.statistics import BatchRun
from service.observe import metrics
from service.observe.metrics import Metrics, ModelMetrics, TritonModelMetrics
from tests.descriptors import free_descriptors

_unique = count()


@pytest.fixture
def name() -> str:
    """A model or operation that no other test counts: metrics belong to the whole process."""
    return f"test-{os.getpid()}-{next(_unique)}"


def exposed() -> Iterator[Any]:
    # Imported here, since service.observe.metrics must be imported first (it says why).
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(metrics.exposition().decode()):
        yield from family.samples


def run_of(rows: int, requests: int = 1) -> BatchRun:
    """A run of 7 s: 1 s of joining, 4 s of inference, 2 s of splitting."""
    return BatchRun(
        requests=requests,
        rows=rows,
        answered=9.0,
        queued=2.0,
        joining=1.0,
        inference=4.0,
        splitting=2.0,
    )


def samples(label: str, value: str) -> dict[tuple[str, str], float]:
    """The samples with this label, by their names and their bounds (`le`)."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for sample in exposed()
        if sample.labels.get(label) == value
    }


def test_requests_are_counted_when_they_are_flushed(name: str) -> None:
    observed = Metrics()
    observed.request("http", name, "200").observe(0.002)
    observed.request("http", name, "200").observe(0.3)
    assert samples("operation", name).get(("mnist_request_seconds_count", "")) in (None, 0)
    metrics.flush()
    metrics.flush()  # counts nothing twice
    counted = samples("operation", name)
    assert counted["mnist_request_seconds_count", ""] == 2
    assert counted["mnist_request_seconds_sum", ""] == pytest.approx(0.302)


@pytest.mark.parametrize(
    ("rows", "bound"), [(1, "1.0"), (2, "2.0"), (3, "4.0"), (4096, "4096.0"), (4097, "+Inf")]
)
def test_a_value_counts_in_the_first_bucket_that_it_does_not_exceed(
    name: str, rows: int, bound: str
) -> None:
    ModelMetrics(name, "1").ran(run_of(rows))
    metrics.flush()
    counted = samples("model", name)
    bounds = [le for sample, le in counted if sample == "mnist_batch_images_bucket"]
    first = min((le for le in bounds if counted["mnist_batch_images_bucket", le]), key=float)
    assert first == bound
    assert counted["mnist_batch_images_bucket", "+Inf"] == 1


def test_a_run_counts_once_in_images_and_seconds_and_in_the_statistics(name: str) -> None:
    model = ModelMetrics(name, "1")
    model.ran(run_of(rows=6, requests=3))
    metrics.flush()
    counted = samples("model", name)
    assert counted["mnist_batch_images_sum", ""] == 6
    assert counted["mnist_inference_seconds_count", ""] == 1
    assert counted["mnist_inference_seconds_sum", ""] == 7
    assert model.as_dict()["inference_count"] == 6
    assert model.as_dict()["inference_stats"]["success"]["count"] == 3


def test_triton_has_its_own_names_for_what_a_model_did(name: str) -> None:
    model = TritonModelMetrics(name, "1")
    model.ran(run_of(3, requests=2))
    model.ran(run_of(1))
    model.failed(0.5)
    model.shed("queue")
    Metrics().pending({(name, "1"): 2})
    metrics.flush()
    text = metrics.exposition().decode()
    lines = [line for line in text.splitlines() if name in line and line.startswith("nv_inference")]
    labels = f'model="{name}",version="1"'
    counted = [line.removeprefix("nv_inference_").replace(labels, "") for line in lines]
    assert sorted(counted) == [
        "compute_infer_duration_us{} 1.2e+07",
        "compute_input_duration_us{} 3e+06",
        "compute_output_duration_us{} 6e+06",
        "count{} 4.0",
        "exec_count{} 2.0",
        "pending_request_count{} 2.0",
        "queue_duration_us{} 4e+06",
        "request_duration_us{} 1.8e+07",
        f'request_failure{{model="{name}",reason="OTHER",version="1"}} 1.0',
        f'request_failure{{model="{name}",reason="REJECTED",version="1"}} 1.0',
        "request_success{} 3.0",
    ]
    assert "# TYPE nv_inference_request_success counter\n" in text
    assert "# TYPE nv_inference_pending_request_count gauge\n" in text


def test_refused_requests_are_counted_by_reason_at_the_next_flush(name: str) -> None:
    model = ModelMetrics(name, "1")
    for reason in ["time"] * 3 + ["deadline"]:
        model.shed(reason)

    def shed() -> dict[str, float]:
        return {
            sample.labels["reason"]: sample.value
            for sample in exposed()
            if sample.name == "mnist_shed_requests_total" and sample.labels["model"] == name
        }

    assert shed() == {"queue": 0, "time": 0, "deadline": 0}
    metrics.flush()
    metrics.flush()
    assert shed() == {"queue": 0, "time": 3, "deadline": 1}
    assert model.as_dict()["inference_stats"]["fail"] == {"count": 4, "ns": 0}


def test_an_unloaded_version_is_reported_as_0(name: str) -> None:
    observed = Metrics()
    one, other = ((name, version, "CPUExecutionProvider", "ab") for version in ("1", "2"))

    def loaded() -> dict[str, float]:
        return {
            sample.labels["version"]: sample.value
            for sample in exposed()
            if sample.name == "mnist_model_info" and sample.labels["model"] == name
        }

    observed.models_loaded({one}, 0)
    assert loaded() == {"1": 1}
    observed.models_loaded({one, other}, 0)
    assert loaded() == {"1": 1, "2": 1}
    observed.models_loaded({other}, 3)
    assert loaded() == {"1": 0, "2": 1}
    assert "mnist_model_load_failures 3.0" in metrics.exposition().decode()


@pytest.mark.parametrize("suffix", ['"', "\\", "\n", "}\nmnist_forged 1\n#", "\N{SNOWMAN}", "\x00"])
def test_any_label_stays_one_label_of_the_exposition(name: str, suffix: str) -> None:
    model = name + suffix
    ModelMetrics(model, "1").run_failed(ValueError("a defect"))
    assert samples("model", model)["mnist_inference_failures_total", ""] == 1
    assert not any(
        line.startswith("mnist_forged") for line in metrics.exposition().decode().splitlines()
    )


def test_the_gauges_of_killed_workers_are_removed_and_their_counters_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = 2**22 - 1  # above the kernel's largest process id
    alive = os.getppid()
    files = [f"{kind}_{pid}.db" for kind in ("gauge_livemax", "counter") for pid in (dead, alive)]
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setenv(metrics.DIRECTORY, str(tmp_path))
    Metrics()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(set(files) - {f"gauge_livemax_{dead}.db"})


def test_a_metric_without_disk_space_is_missing_until_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    space = 65536 + 100  # a new file, and a part of its next size

    def write_to_a_small_disk(descriptor: int, data: bytes, offset: int) -> int:
        if (left := space - offset) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:left], offset)

    monkeypatch.setattr(os, "pwrite", write_to_a_small_disk)
    path = tmp_path / "counter_1.db"
    file = metrics.ReservedDict(str(path))
    long = "x" * 1000
    for number in range(100):
        file.write_value(f"{number} {long}", number, 0.0)
    assert path.stat().st_size == path.stat().st_blocks * 512 == 65536
    held = {key for key, *_ in file.read_all_values_from_file(str(path))}
    assert f"0 {long}" in held
    assert f"99 {long}" not in held
    monkeypatch.setattr(os, "pwrite", write)
    for number in range(100):
        file.write_value(f"{number} {long}", number, 0.0)
    values = {key: value for key, value, *_ in file.read_all_values_from_file(str(path))}
    assert values == {f"{number} {long}": number for number in range(100)}
    assert path.stat().st_blocks * 512 == path.stat().st_size
    assert sorted(x.name for x in tmp_path.iterdir()) == ["counter_1.db"]
    file.close()


def test_a_metric_without_a_descriptor_is_missing_until_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "counter_2.db"
    file = metrics.ReservedDict(str(path))
    keys = [f"{number} {'x' * 1000}" for number in range(200)]  # the file grows twice
    for place in range(0, 200, 10):
        for free in range(3):
            with free_descriptors(free):
                for key in keys[: place + 10]:
                    file.write_value(key, 1.0, 0.0)
    for key in keys:
        file.write_value(key, 2.0, 0.0)
    values = {key: value for key, value, *_ in file.read_all_values_from_file(str(path))}
    assert values == dict.fromkeys(keys, 2.0)
    file.close()


def test_predictions_are_counted_by_what_was_accepted_and_why_not(name: str) -> None:
    counts = ModelMetrics(name, "1").judgements
    of_later_load = ModelMetrics(name, "1").judgements

    def counted() -> dict[tuple[str, str], float]:
        metrics.flush()
        return {
            (sample.labels["accepted"], sample.labels["reason"]): sample.value
            for sample in exposed()
            if sample.name == "mnist_predictions_total" and sample.labels["model"] == name
        }

    none = dict.fromkeys([("unknown", ""), ("true", ""), *(("false", r) for r in REASONS[1:])], 0.0)
    assert counted() == none
    counts[True, ""] += 3
    counts[False, "blank"] += 1
    of_later_load[None, ""] += 2
    of_later_load[False, ""] += 1  # a model that gives no reason
    more = {("true", ""): 3.0, ("false", "blank"): 1.0, ("unknown", ""): 2.0}
    assert counted() == {**none, **more, ("false", "unsure"): 1.0}
    assert counted() == {**none, **more, ("false", "unsure"): 1.0}
