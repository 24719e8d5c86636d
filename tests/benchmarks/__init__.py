"""Tests of the benchmarks; those with the real load generators need wrk and h2load."""

from benchmarks.host import Host

HOST = Host(
    cpu="a CPU",
    cores=2,
    memory_gb=8.0,
    system="Linux",
    python="3.11",
    wrk="wrk 4",
    h2load="1.52",
    revision="abc",
    load_average_before=[0.0],
)
