"""Models whose runs are long, of any length that a client chooses."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.load.attacks.callers import Ended, Target, exchange, in_threads


def long_loop(target: Target, ended: Ended) -> Counter[str]:
    """Two callers of a model whose loop runs for seconds; its warm-up run is short."""
    return in_threads(2, ended, _infer(target, "loop", itertools.repeat([10_000])))


def transformer(target: Target, ended: Ended) -> Counter[str]:
    """Four callers of a transformer with an open length, at lengths of 8 to 512."""
    chance = np.random.default_rng(0)
    shapes = ([1, int(2 ** chance.integers(3, 10)), 64] for _ in itertools.count())
    return in_threads(4, ended, _infer(target, "transformer", shapes))


def _infer(
    target: Target, model: str, shapes: Iterator[list[int]]
) -> Callable[[Counter[str]], None]:
    lock = threading.Lock()

    def once(counts: Counter[str]) -> None:
        with lock:
            shape = next(shapes)
        status, _ = exchange(
            target.http_port, "POST", f"/v2/models/{model}/infer", *infer_body(shape)
        )
        counts[str(status)] += 1

    return once


def infer_body(shape: Sequence[int], timeout_s: float = 0.0) -> tuple[bytes, dict[str, str]]:
    """A binary request of ones, FP32, for the input `x`."""
    content = np.ones(shape, np.float32).tobytes()
    tensor = {
        "name": "x",
        "shape": list(shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(content)},
    }
    timeout = {"timeout": round(timeout_s * 1e6)} if timeout_s else {}
    parameters = {"binary_data_output": True, **timeout}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return head + content, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
