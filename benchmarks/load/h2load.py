"""h2load: a closed loop over HTTP/2, with gRPC frames as bodies.

h2load reports mean and deviation only, so percentiles come from its log of every request. It
ignores trailers: it counts an answer with a gRPC error as a success, so errors are identified by
the length of the answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from benchmarks.load.result import GeneratorError, Load, run
from benchmarks.wire_formats import Body


def load(
    url: str,
    body: Body,
    *,
    connections: int,
    streams: int,
    seconds: int,
    answer_bytes: int,
    core: int | None,
    scratch: Path,
) -> Load:
    """Keep connections x streams requests in flight. Raises GeneratorError.

    `answer_bytes` is the length of a right answer with its gRPC frame.
    """
    content, log = scratch / "body.bin", scratch / "h2load.log"
    content.write_bytes(body.content)
    log.unlink(missing_ok=True)
    command = ["h2load", "--clients", str(connections), "--threads", "1"]
    command += ["--max-concurrent-streams", str(streams), "--duration", str(seconds)]
    command += ["--data", str(content), "--log-file", str(log)]
    for name, value in body.headers:
        command += ["--header", f"{name}: {value}"]
    output, cpu_seconds = run([*command, url], core, seconds + 60)
    return parse(output, log.read_text(), answer_bytes)._replace(generator_cpu_seconds=cpu_seconds)


def parse(output: str, log: str, answer_bytes: int) -> Load:
    """Parse h2load's report and its log. Raises GeneratorError.

    The log's columns are the start in microseconds, the HTTP status, and the microseconds to the
    end of the answer.
    """
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m), ", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    data = re.search(r"\((\d+)\) data", output)
    if finished is None or counts is None or data is None:
        raise GeneratorError(f"h2load's report is unreadable: {output[-400:]!r}")
    rows = [line.split("\t") for line in log.splitlines()]
    times = [int(row[2]) for row in rows if len(row) >= 3 and row[1] == "200"]
    if not times:
        totals = [
            line for line in output.splitlines() if line.startswith(("requests:", "traffic:"))
        ]
        raise GeneratorError(f"h2load got no answer: {' '.join(totals)}")
    succeeded, failed, errored, timeouts = map(int, counts.groups())
    # Answers that lack the data of a right one; rounded, because the end of the run cuts some off.
    empty = max(0, round((succeeded * answer_bytes - int(data[1])) / answer_bytes))
    seconds = float(finished[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]
    return Load(
        requests=succeeded - empty,
        seconds=seconds,
        p50_ms=float(np.percentile(times, 50)) / 1000,
        p99_ms=float(np.percentile(times, 99)) / 1000,
        failed=max(failed, errored, timeouts) + empty,
    )
