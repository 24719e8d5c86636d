"""wrk: a closed loop over HTTP/1.1."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.load.result import GeneratorError, Load, run
from benchmarks.wire_formats import Body

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3}
_TIME = r"([\d.]+)(us|ms|s|m|h)"
_SCRIPT = """wrk.method = "POST"
local file = io.open({body}, "rb")
wrk.body = file:read("*a")
file:close()
{headers}
"""


def load(
    url: str, body: Body, *, connections: int, seconds: int, core: int | None, scratch: Path
) -> Load:
    """Keep one request in flight on each connection. Raises GeneratorError."""
    script = write_script(body, scratch)
    command = ["wrk", "--threads", "1", "--connections", str(connections)]
    command += ["--duration", f"{seconds}s", "--timeout", "10s", "--latency"]
    output, cpu_seconds = run([*command, "--script", str(script), url], core, seconds + 60)
    return parse(output)._replace(generator_cpu_seconds=cpu_seconds)


def write_script(body: Body, scratch: Path) -> Path:
    """A Lua script that sets the globals from which wrk formats its request, once."""
    content = scratch / "body.bin"
    content.write_bytes(body.content)
    headers = "\n".join(f"wrk.headers[{_lua(n)}] = {_lua(v)}" for n, v in body.headers)
    script = scratch / "post.lua"
    script.write_text(_SCRIPT.format(body=_lua(str(content)), headers=headers), encoding="utf-8")
    return script


def _lua(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def parse(output: str) -> Load:
    """Parse a report of `wrk --latency`. Raises GeneratorError."""
    total = re.search(rf"(\d+) requests in {_TIME}", output)
    if total is None:
        raise GeneratorError(f"wrk's report has no total: {output[-400:]!r}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    failed = int(refused[1]) if refused else 0
    answered = int(total[1]) - failed
    failed += sum(map(int, broken.groups())) if broken else 0
    if not answered and not failed:
        raise GeneratorError("wrk got no answer")
    return Load(
        requests=answered,
        seconds=float(total[2]) * _UNITS_MS[total[3]] / 1000,
        p50_ms=_percentile(output, 50),
        p99_ms=_percentile(output, 99),
        failed=failed,
    )


def _percentile(output: str, share: int) -> float:
    line = re.search(rf"^\s*{share}%\s+{_TIME}\s*$", output, re.MULTILINE)
    if line is None:
        raise GeneratorError(f"wrk's report has no {share} % latency: {output[-400:]!r}")
    return float(line[1]) * _UNITS_MS[line[2]]
