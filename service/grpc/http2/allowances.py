"""How often a peer may do what costs it nothing.

A call that the peer opens and resets at once, or that ends by a stream error, costs the peer next
to nothing, so such calls use up an allowance that grows with time and with answered calls. Without
it, the peer is asked to connect again by a GOAWAY that ends no call; if many more come, its
connection ends. PINGs have an allowance of their own.
"""

from __future__ import annotations

from service.core.allowance import Allowance

# Rapid reset (CVE-2023-44487) opens and resets calls without waiting, so that max_streams does not
# bound them. A call that was open for this many seconds did count towards max_streams.
QUICK_RESET_S = 0.05
# Quick resets and stream errors that a peer may cause at once, and how many more per second. Each
# costs some 20 us, so this rate takes 2 % of a core. Answered calls allow as many again.
_FREE_RESETS = 1000
# How many more, until a peer that is asked to connect again is cut off. What a proxy sent before it
# read that lies in the sockets' buffers, some 95 bytes per call. On a busy machine with Linux's
# usual limits (4 MB at the sender, 6 MB here) that was more than 10,000 calls.
_LATE_RESETS = 100_000
# The same of PINGs. gRPC-Go sends one per answer to measure the bandwidth.
_FREE_PINGS = 1000


def resets() -> Allowance:
    """Of the calls of a connection that its peer gives up at once or breaks."""
    return Allowance(_FREE_RESETS, _LATE_RESETS)


def pings() -> Allowance:
    """Of the PINGs of a connection."""
    return Allowance(_FREE_PINGS)
