"""The limit: `session.run` in a loop, without a server. Prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.floors.session import make_session
from benchmarks.served_models import Pixels, test_images


def main() -> None:
    """Arguments: images per batch, seconds of warm-up, and seconds of measuring."""
    batch, warm_up, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    session = make_session(Path(os.environ["MODEL_PATH"]))
    images = test_images(batch)
    _times(session, images, warm_up)
    cpu = time.process_time()
    times = _times(session, images, seconds)
    print(
        json.dumps(
            {
                "requests": len(times),
                "seconds": sum(times),
                "p50_ms": float(np.percentile(times, 50)) * 1000,
                "p99_ms": float(np.percentile(times, 99)) * 1000,
                "cpu_seconds": time.process_time() - cpu,
            }
        )
    )


def _times(session: ort.InferenceSession, images: Pixels, seconds: float) -> list[float]:
    times: list[float] = []
    start = before = time.perf_counter()
    while before - start < seconds or not times:
        session.run(None, {"image": images})
        after = time.perf_counter()
        times.append(after - before)
        before = after
    return times


if __name__ == "__main__":
    main()
