from __future__ import annotations

import logging
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from service.core.datatypes import DTYPES, Array
from service.repository.triton_config import TensorConfig, TritonConfig, WarmUp, WarmUpInput
from service.repository.warm_up import samples


def sample_of(
    folder: Path, source: WarmUpInput, *, rows: int = 2, config: TritonConfig | None = None
) -> Array:
    """The only input of the only sample."""
    config = config or TritonConfig(max_batch_size=8)
    warm_up = WarmUp("w", rows, 1, {"x": source})
    (sample,) = samples(config._replace(warm_ups=[warm_up]), folder)
    return sample["x"]


@pytest.mark.parametrize("datatype", DTYPES)
def test_zeros_and_random_numbers_of_every_datatype(tmp_path: Path, datatype: str) -> None:
    for source in ("zero_data", "random_data"):
        array = sample_of(tmp_path, WarmUpInput(datatype, (3, 4), source))
        assert array.shape == (2, 3, 4)
        assert array.dtype == DTYPES[datatype]
        if source == "random_data":
            assert len(set(array.ravel().tolist())) > 1
        else:
            assert not any(array.ravel())


def test_every_row_has_the_contents_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    values = np.arange(3, dtype="<f4")
    (tmp_path / "warmup" / "raw").write_bytes(values.tobytes())
    array = sample_of(tmp_path, WarmUpInput("FP32", (3,), "raw", is_file=True))
    np.testing.assert_array_equal(array, [values, values])
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"one", b"", b"two"))
    (tmp_path / "warmup" / "texts").write_bytes(texts)
    array = sample_of(tmp_path, WarmUpInput("BYTES", (3,), "texts", is_file=True), rows=1)
    assert array.tolist() == [["one", "", "two"]]


@pytest.mark.parametrize(
    ("max_batch_size", "rows", "shape"),
    [
        (8, 2, (2, 4)),
        (8, 0, (1, 4)),
        (0, 0, (4,)),
        (0, 1, (4,)),
        (None, 3, (3, 4)),
        (None, 0, (4,)),
    ],
)
def test_a_sample_has_rows_where_the_model_has(
    tmp_path: Path, max_batch_size: int | None, rows: int, shape: tuple[int, ...]
) -> None:
    config = TritonConfig(max_batch_size=max_batch_size)
    source = WarmUpInput("INT8", (4,), "zero_data")
    assert sample_of(tmp_path, source, rows=rows, config=config).shape == shape


def test_a_sample_has_the_shape_of_the_model(tmp_path: Path) -> None:
    config = TritonConfig(
        max_batch_size=4, inputs=[TensorConfig("x", dims=(-1, 2), reshape=(1, -1, 2))]
    )
    source = WarmUpInput("INT8", (3, 2), "zero_data")
    assert sample_of(tmp_path, source, config=config).shape == (2, 1, 3, 2)


def test_repeated_samples_and_their_bound(tmp_path: Path) -> None:
    source = {"x": WarmUpInput("INT8", (), "zero_data")}
    config = TritonConfig(warm_ups=[WarmUp("a", 0, 2, source), WarmUp("b", 0, 2**32 - 1, source)])
    assert len(samples(config, tmp_path)) == 102


def test_a_random_sample_is_drawn_in_its_own_datatype(tmp_path: Path) -> None:
    """Drawn as 64-bit numbers, it took nine times its size for a while."""
    size = 2**20
    tracemalloc.start()
    for datatype in ("UINT8", "BOOL", "BF16", "FP32", "INT64"):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        array = sample_of(tmp_path, WarmUpInput(datatype, (size // 2,), "random_data"))
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 1.5 * array.nbytes
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (WarmUpInput("FP32", (2,), "none", is_file=True), "No such file"),
        (WarmUpInput("FP32", (1,), "link", is_file=True), "a link that leads out of"),
        (WarmUpInput("FP32", (2,), "raw", is_file=True), "holds 1 values, not 2"),
        (WarmUpInput("FP64", (2,), "raw", is_file=True), "buffer size"),
        (WarmUpInput("BYTES", (2,), "raw", is_file=True), "raw"),
        (WarmUpInput("", (2,), "zero_data"), "no data_type"),
        (WarmUpInput("FP32", (2**20, 2**20), "zero_data"), "larger than"),
        (WarmUpInput("INT8", (2**26,), "zero_data"), "larger than 67108864 bytes"),
    ],
)
def test_a_sample_that_cannot_be_made_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: WarmUpInput, reason: str
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "raw").write_bytes(b"\1\0\0\0")
    (tmp_path / "warmup" / "link").symlink_to("/etc/hostname")
    good = WarmUp("good", 0, 1, {"x": WarmUpInput("INT8", (1,), "zero_data")})
    config = TritonConfig(warm_ups=[good, WarmUp("bad", 0, 1, {"x": source})])
    with caplog.at_level(logging.WARNING):
        assert len(samples(config, tmp_path)) == 1
    (line,) = caplog.messages
    assert line.startswith("Sample 'bad' in model_warmup of ")
    assert reason in line
