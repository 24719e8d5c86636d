"""Makes the inputs of a model's first runs from `model_warmup` of config.pbtxt.

Source: Triton's "Model Warmup"; the files are in the folder warmup/ of the model, in the layout of
raw contents.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from service.core.datatypes import BF16, BYTES, DTYPES, Array, split_bytes, strings
from service.core.errors import ServiceError
from service.repository.triton_config import TritonConfig, WarmUpInput
from service.repository.versions import CONFIG_FILE, open_inside
from service.runtime.presented import reshaped
from service.runtime.session import Samples

log = logging.getLogger(__name__)

_FOLDER = "warmup"
_MOST_RUNS = 100  # of one sample
_MOST_BYTES = 1 << 26  # of all inputs of all samples
_BF16_ONE = 0x3F80


def samples(config: TritonConfig, folder: Path) -> Samples:
    """The inputs of each run, by name and in the model's own shapes.

    A sample that cannot be made is left out and logged. `folder` is the model's.
    """
    made: list[Mapping[str, Array]] = []
    room = _MOST_BYTES
    for warm_up in config.warm_ups:
        rows = max(1, warm_up.rows) if config.max_batch_size else warm_up.rows
        batch = (rows,) if rows and config.max_batch_size != 0 else ()
        try:
            size = sum(_bytes_of(each, batch) for each in warm_up.inputs.values())
            if size > room:
                raise ValueError(
                    f"its inputs of {size} bytes make the samples larger than {_MOST_BYTES} bytes"
                )
            sample = {
                name: _in_model_shape(config, name, _array(each, batch, folder), len(batch))
                for name, each in warm_up.inputs.items()
            }
        except (OSError, ValueError, ServiceError) as error:
            log.warning(
                "Sample '%s' in model_warmup of %s is left out: %s.",
                warm_up.name,
                folder / CONFIG_FILE,
                str(error).rstrip("."),
            )
            continue
        room -= size
        made += [sample] * min(warm_up.repeats, _MOST_RUNS)
    return made


def _bytes_of(source: WarmUpInput, batch: tuple[int, ...]) -> int:
    """Bytes of an input of shape `batch` + dims. Raises ValueError if its datatype is open."""
    if not source.datatype:
        raise ValueError("an input has no data_type")
    return prod(batch + source.dims) * DTYPES[source.datatype].itemsize


def _array(source: WarmUpInput, batch: tuple[int, ...], folder: Path) -> Array:
    """An input of shape `batch` + dims; every row of a file's contents is the same."""
    shape, dtype = batch + source.dims, DTYPES[source.datatype]
    if source.is_file:
        path = folder / _FOLDER / source.source
        with open_inside(path, folder, folder / CONFIG_FILE) as file:
            raw = file.read(_MOST_BYTES)
        count = prod(source.dims)
        if source.datatype == BYTES:
            row = strings(str(path), split_bytes(str(path), raw, count))
        else:
            row = np.frombuffer(raw, dtype)
        if row.size != count:
            raise ValueError(f"{path} holds {row.size} values, not {count}")
        return np.array(np.broadcast_to(row.reshape(source.dims), shape))
    if source.source == "zero_data":
        return np.full(shape, "" if source.datatype == BYTES else 0, dtype)
    random = np.random.default_rng(0)
    if source.datatype == BYTES:
        digits: Sequence[str] = [str(n) for n in random.integers(0, 10, prod(shape))]
        return np.array(digits, object).reshape(shape)
    if dtype.kind == "f":
        drawn = np.float64 if dtype.itemsize > np.dtype(np.float32).itemsize else np.float32
        return random.random(shape, drawn).astype(dtype, copy=False)
    # Small numbers: a larger one may be no valid index.
    array: Array = np.asarray(random.integers(0, 2, shape, dtype.type))
    if source.datatype == BF16:
        array *= dtype.type(_BF16_ONE)
    return array


def _in_model_shape(config: TritonConfig, name: str, array: Array, batch_dims: int) -> Array:
    tensor = next((each for each in config.inputs if each.name == name), None)
    if tensor is None or tensor.reshape is None:
        return array
    batch = (-1,) * batch_dims
    return reshaped(array, batch + tensor.dims, batch + tensor.reshape)
