"""Trials with real hosts, children and crashes of ONNX Runtime."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from service.core.batching import Batching
from service.core.errors import ModelLoadError
from service.runtime import trial as trials_module
from service.runtime.session import SessionOptions
from service.runtime.trial import HostError, Trial, Trials, array_from_json, array_to_json
from tests.descriptors import free_descriptors
from tests.e2e.onnx_models import (
    publish_crashing,
    publish_identity,
    publish_pool,
    publish_scalar,
)

CPU = SessionOptions("cpu")
DECLARED = Batching(False, "off: declared")


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    with_folder = Trials(tmp_path)
    yield with_folder
    with_folder.close()


def trial_of(root: Path, name: str, **more: Any) -> Trial:
    fields = {"options": CPU, "batching": None, "samples": ()} | more
    return Trial(f"sha-of-{name}", root / name / "1" / "model.onnx", **fields)


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def host_of(trials: Trials) -> subprocess.Popen[bytes]:
    assert trials._host is not None
    return trials._host


def slow_trial(root: Path) -> Trial:
    """Its warm-up is one node of some minutes, which ONNX Runtime does not interrupt."""
    publish_pool(root)
    sample = {"x": np.ones((1, 1, 512, 512), np.float32)}
    return trial_of(root, "pool", batching=DECLARED, samples=[sample])


OBJECTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.just("\ud800"),  # a lone surrogate, as a name of a file has it
)


@given(arrays_of.arrays(object, arrays_of.array_shapes(min_dims=0, min_side=0), elements=OBJECTS))
def test_arrays_of_objects_survive_json(array: Any) -> None:
    back = array_from_json(json.loads(json.dumps(array_to_json(array))))
    assert (back.dtype, back.shape) == (object, array.shape)
    for ours, theirs in zip(array.flat, back.flat, strict=True):
        assert type(ours) is type(theirs)
        assert ours == theirs or (ours != ours and theirs != theirs)


@given(
    arrays_of.arrays(
        st.sampled_from(["?", "u1", "<u2", "<u8", "i1", "<i8", "<f2", "<f4", "<f8", "S3"]),
        arrays_of.array_shapes(min_dims=0, min_side=0),
    )
)
def test_arrays_of_numbers_and_bytes_survive_json(array: Any) -> None:
    back = array_from_json(json.loads(json.dumps(array_to_json(array))))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_objects_of_numpy_become_plain_ones_and_others_are_refused() -> None:
    array = np.array([np.float32(0.5), np.int64(3), np.bytes_(b"\xff"), np.str_("é")], object)
    back = array_from_json(json.loads(json.dumps(array_to_json(array))))
    assert back.tolist() == [0.5, 3, b"\xff", "é"]
    with pytest.raises(TypeError, match="dict"):
        array_to_json(np.array([{}], object))


def test_a_request_is_read_back_with_its_repeated_samples() -> None:
    sample = {"x": np.array(["a", "é"], object)}
    sent = Trial("x", Path(os.fsdecode(b"/m\xff/1")), CPU, DECLARED, [sample] * 100)
    request = json.loads(json.dumps(sent.request()))
    assert len(request["samples"]) == 1
    back = Trial.of(request)
    assert (back.path, back.options, back.batching) == (sent.path, CPU, DECLARED)
    assert len(back.samples) == 100
    assert back.samples[99]["x"].tolist() == ["a", "é"]


def test_a_model_is_verified_once_for_all_workers(tmp_path: Path, trials: Trials) -> None:
    publish_identity(tmp_path, "FP32")
    publish_scalar(tmp_path)
    rows = trial_of(tmp_path, "identity_fp32")
    assert trials.batching(rows).reason.startswith("verified for up to ")
    whole = trials.batching(trial_of(tmp_path, "scalar"))
    assert not whole.allowed
    # What was found out needs no host, here and in another worker, also to load it again.
    trials.close()
    other = Trials(tmp_path)
    for each in (trials, other):
        assert each.batching(rows, again=True) == each.batching(rows)
        assert each.batching(trial_of(tmp_path, "scalar")) == whole
        assert each._host is None


def test_other_samples_are_another_trial(tmp_path: Path, trials: Trials) -> None:
    publish_identity(tmp_path, "FP32")
    trials.batching(trial_of(tmp_path, "identity_fp32"))
    before = set(tmp_path.glob("*.trial"))
    sample = {"x": np.ones((1, 2), np.float32)}
    trials.batching(trial_of(tmp_path, "identity_fp32", samples=[sample]))
    assert len(set(tmp_path.glob("*.trial")) - before) == 1


def test_a_declaration_is_kept_as_it_is(tmp_path: Path, trials: Trials) -> None:
    publish_identity(tmp_path, "BYTES")
    sample = {"x": np.array([["a", "b"]], object)}
    declared = Batching(True, "declared in model.json")
    trial = trial_of(tmp_path, "identity_bytes", batching=declared, samples=[sample])
    assert trials.batching(trial) == declared


def test_a_model_that_crashes_is_refused_after_two_crashes(
    tmp_path: Path, trials: Trials, caplog: pytest.LogCaptureFixture
) -> None:
    publish_crashing(tmp_path)
    crashing = trial_of(tmp_path, "crashing")
    for each in (trials, Trials(tmp_path)):  # the second takes the result of the first
        with pytest.raises(ModelLoadError, match=r"crashed twice \(SIG[A-Z]+\)") as raised:
            each.batching(crashing)
        assert "export it again" in raised.value.message
    assert caplog.text.count("it is tried once more") == 1
    with pytest.raises(ModelLoadError, match="crashed twice"):  # an operator asks for it
        trials.batching(crashing, again=True)
    assert caplog.text.count("it is tried once more") == 2
    # The host lives on, and tries others.
    publish_identity(tmp_path, "FP32")
    assert trials.batching(trial_of(tmp_path, "identity_fp32")).allowed


def test_a_file_that_is_no_model_has_the_error_of_onnx_runtime(
    tmp_path: Path, trials: Trials
) -> None:
    (tmp_path / "junk" / "1").mkdir(parents=True)
    (tmp_path / "junk" / "1" / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ModelLoadError, match="ONNXRuntimeError"):
        trials.batching(trial_of(tmp_path, "junk"))
    assert list(tmp_path.glob("*.trial")) == []  # its reason may be gone the next time


def test_a_model_that_takes_too_long_is_refused_and_its_process_killed(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = slow_trial(tmp_path)
    publish_identity(tmp_path, "FP32")
    trials.batching(trial_of(tmp_path, "identity_fp32"))  # starts the host, which takes a while
    host = host_of(trials)
    monkeypatch.setattr(trials_module, "_SECONDS", 1 - CPU.max_run_s)
    seen: list[int] = []
    watching = threading.Thread(target=lambda: wait_until(lambda: seen or _see(host.pid, seen)))
    watching.start()
    with pytest.raises(ModelLoadError, match="took longer than 1 seconds"):
        trials.batching(slow)
    watching.join()
    wait_until(lambda: not any(map(is_running, seen)))
    monkeypatch.undo()
    publish_scalar(tmp_path)
    assert not trials.batching(trial_of(tmp_path, "scalar")).allowed  # in a new host


def _see(host: int, seen: list[int]) -> bool:
    seen += children(host)
    return bool(seen)


@pytest.mark.parametrize("killed", ["child", "host"])
def test_a_process_that_is_killed_twice_is_said_to_lack_memory(
    tmp_path: Path, trials: Trials, killed: str
) -> None:
    slow = slow_trial(tmp_path)
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            if (host := trials._host) and (tried := children(host.pid)):
                pid = host.pid if killed == "host" else tried[0]
                scored = Path(f"/proc/{pid}/oom_score_adj")
                with contextlib.suppress(OSError):
                    if scored.read_text() == "1000\n":  # the kernel takes it before a worker
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ModelLoadError, match=r"killed twice.*more memory"):
            trials.batching(slow)
    finally:
        done.set()
        killer.join()


def test_a_host_that_has_ended_is_started_again(tmp_path: Path, trials: Trials) -> None:
    publish_identity(tmp_path, "FP32")
    trials.batching(trial_of(tmp_path, "identity_fp32"))
    host = host_of(trials)
    host.kill()
    host.wait()
    publish_scalar(tmp_path)
    assert not trials.batching(trial_of(tmp_path, "scalar")).allowed
    assert host_of(trials).pid != host.pid


def test_a_host_that_cannot_start_is_an_error_of_its_own(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "_HOST", "raise SystemExit(3)")
    publish_scalar(tmp_path)
    with pytest.raises(HostError, match="status 3"):
        trials.batching(trial_of(tmp_path, "scalar"))


def test_a_program_that_is_missing_is_an_error_of_its_own(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    publish_scalar(tmp_path)
    with pytest.raises(HostError, match="cannot be started"):
        trials.batching(trial_of(tmp_path, "scalar"))


def test_a_shared_folder_that_cannot_be_used_costs_only_the_sharing(tmp_path: Path) -> None:
    publish_identity(tmp_path, "FP32")
    for folder in (tmp_path / "removed", tmp_path / "file"):
        (tmp_path / "file").touch()
        trials = Trials(folder)
        trial = trial_of(tmp_path, "identity_fp32")
        assert trials.batching(trial).allowed
        trials.close()
        assert trials.batching(trial).allowed
        assert trials._host is None  # kept by this process
        with trials.marked("sha"):
            pass


def test_the_host_has_no_descriptor_of_its_worker_and_ignores_signals_to_the_group(
    tmp_path: Path, trials: Trials
) -> None:
    publish_identity(tmp_path, "FP32")
    with (tmp_path / "inheritable").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        trials.batching(trial_of(tmp_path, "identity_fp32"))
        host = host_of(trials)
        links = [str(fd.readlink()) for fd in Path(f"/proc/{host.pid}/fd").iterdir()]
    assert all(link.startswith(("pipe:", "/dev/null")) for link in links), links
    assert len(list(Path(f"/proc/{host.pid}/task").iterdir())) == 1  # it forks without threads
    assert os.getsid(host.pid) == host.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        host.send_signal(number)
    publish_scalar(tmp_path)
    trials.batching(trial_of(tmp_path, "scalar"))
    assert host_of(trials).pid == host.pid
    trials.close()
    assert host.returncode == 0


WORKER = """
import sys
from pathlib import Path
from tests.service.runtime.test_trial import Trials, slow_trial
Trials().batching(slow_trial(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGTERM])
def test_host_and_child_end_with_their_worker(tmp_path: Path, fatal: signal.Signals) -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)])
    try:
        wait_until(lambda: any(map(children, children(worker.pid))))
        hosts = children(worker.pid)
        tried = [child for host in hosts for child in children(host)]
    finally:
        worker.send_signal(fatal)
        worker.wait()
    wait_until(lambda: not any(map(is_running, hosts + tried)))


def test_a_worker_waits_for_the_trial_of_another_and_takes_its_result(
    tmp_path: Path, trials: Trials
) -> None:
    publish_identity(tmp_path, "FP32")
    waiting: list[bool] = []
    other = Trials(tmp_path, waiting.append)
    trial, results = trial_of(tmp_path, "identity_fp32"), []
    thread = threading.Thread(target=lambda: results.append(other.batching(trial)))
    with trials._turn():
        thread.start()
        wait_until(lambda: waiting)
        # As the first worker would, while it holds the lock.
        trials._keep(*_result_of(trial))
    thread.join()
    assert results == [Batching(False, "kept by the first worker")]
    assert other._host is None
    assert waiting == [True, False]


def _result_of(trial: Trial) -> tuple[str, dict[str, Any]]:
    batching = trials_module._batching_to_json(Batching(False, "kept by the first worker"))
    return trials_module._key(trial.sha256, trial.request()), {"batching": batching}


def test_without_free_descriptors_nothing_is_found_out_and_nothing_kept(
    tmp_path: Path, trials: Trials
) -> None:
    publish_identity(tmp_path, "FP32")
    trial = trial_of(tmp_path, "identity_fp32")
    for free in range(5):
        with free_descriptors(free), pytest.raises(OSError, match="Too many open files"):
            trials.batching(trial)
        assert list(tmp_path.glob("*.trial")) == []
    assert trials.batching(trial).allowed


def test_a_model_is_not_loaded_once_two_workers_died_of_it(tmp_path: Path, trials: Trials) -> None:
    with trials.marked("sha"):
        pass
    assert list(tmp_path.glob("*.loading")) == []
    for _ in range(2):
        with trials.marked("sha"):  # one such end may be chance
            pass
        child = os.fork()
        if not child:
            with trials.marked("sha"):
                os._exit(0)
        os.waitpid(child, 0)
    with pytest.raises(ModelLoadError, match="2 workers ended"), trials.marked("sha"):
        pytest.fail("it is loaded")
    with trials.marked("another"):
        pass
    with trials.marked("sha", again=True):
        pass
    with trials.marked("sha"):
        pass
