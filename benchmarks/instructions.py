"""`python -m benchmarks.instructions [EVENTS]`: instructions of Redis for an event, beside the reference.

The server runs in callgrind, so the figures are the same on a busy machine as on a quiet one, but for a
hundredth or two. Time is more than instructions: cache misses are told as callgrind simulates them, with a
last level of 2 MiB, as large as a processor's own. Needs valgrind; takes a minute or two.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.deployment import PARTITIONS
from benchmarks.redis_load import Writer, calls, send
from benchmarks.reference import Reference
from benchmarks.script_load import Scripts
from benchmarks.test_reference import batches, now_ms
from tests.redis_server import RedisServer, binary

_EVENTS = 9_600
_USERS = 4_000
_BATCH = 480  # about what workers have in a drain
_OPTIONS = "--tool=callgrind -q --instr-atstart=no --cache-sim=yes --LL=2097152,16,64"
_ROW = "{:<28} {:>13} {:>13} {:>13}"


def cost(kind: str, events: int, folder: Path, *, locks: bool) -> dict[str, float]:
    """Counts of one event by callgrind's names (Ir, D1mr, …)."""
    out = folder / f"{kind}-{locks}.out"
    server_in_callgrind = folder / "redis-server"
    server_in_callgrind.write_text(
        f'#!/bin/sh\nexec valgrind {_OPTIONS} --callgrind-out-file="{out}" "{binary()}" "$@"\n',
        encoding="utf-8",
    )
    server_in_callgrind.chmod(0o755)
    work = batches(_BATCH, events=events, users=_USERS)
    with RedisServer(executable=str(server_in_callgrind)) as server:
        writer: Writer = Reference(now_ms(), locks=locks)
        if kind == "scripts":
            writer = Scripts(server, range(PARTITIONS), locks=locks)
        prepared = calls(writer, work, locks=locks)
        _count(server, "on")
        send(server, prepared)
        _count(server, "off")
        server.stop()
    text = out.read_text(encoding="utf-8")
    names, totals = re.search(r"^events: (.*)$", text, re.M), re.search(r"^totals: (.*)$", text, re.M)
    assert names is not None, f"{out} names no events"
    assert totals is not None, f"{out} holds no totals"
    return {
        name: int(value) / events for name, value in zip(names[1].split(), totals[1].split(), strict=True)
    }


def _count(server: RedisServer, state: str) -> None:
    subprocess.run(["callgrind_control", "-i", state, str(server.pid)], check=True, capture_output=True)


def main() -> int:
    """Print one row for each locking mode and writer, and the ratios."""
    if shutil.which("valgrind") is None:
        print("valgrind is not on PATH: install it (Debian: apt install valgrind)", file=sys.stderr)
        return 2
    events = int(sys.argv[1]) if len(sys.argv) > 1 else _EVENTS
    print(_ROW.format(f"of an event ({events} of them)", "instructions", "D1 misses", "LL misses"))
    with tempfile.TemporaryDirectory(prefix="eventproc-callgrind-") as folder:
        for locking in ("event", "partition"):
            instructions = []
            for kind in ("reference", "scripts"):
                found = cost(kind, events, Path(folder), locks=locking == "event")
                instructions.append(found["Ir"])
                misses = [found[f"{level}mr"] + found[f"{level}mw"] for level in ("D1", "DL")]
                row = [f"{found['Ir']:,.0f}", *(f"{count:.1f}" for count in misses)]
                print(_ROW.format(f"{kind}, locking {locking}", *row), flush=True)
            print(f"scripts by reference, locking {locking}: {instructions[1] / instructions[0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
