from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from service.observe import metrics
from service.observe.metrics import Metrics

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


def samples(label: str, value: str) -> dict[tuple[str, str], float]:
    """The samples with this label, by their names and their bounds (`le`)."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for sample in exposed()
        if sample.labels.get(label) == value
    }


def test_requests_are_counted_when_they_are_flushed(name: str) -> None:
    observed = Metrics()
    observed.observe_request("http", name, "200", 0.002)
    observed.observe_request("http", name, "200", 0.3)
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
    images, _, _ = Metrics().batch_observer(name, "1")
    images.observe(rows)
    metrics.flush()
    counted = samples("model", name)
    bounds = [le for sample, le in counted if sample == "mnist_batch_images_bucket"]
    first = min((le for le in bounds if counted["mnist_batch_images_bucket", le]), key=float)
    assert first == bound
    assert counted["mnist_batch_images_bucket", "+Inf"] == 1


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
    _, _, failures = Metrics().batch_observer(model, "1")
    failures.inc()
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
