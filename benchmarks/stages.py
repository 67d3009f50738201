"""`python -m benchmarks.stages [LOCKING [EVENTS]]`: where the workers' CPU time goes in a drain, by stage.

py-spy samples every worker while a backlog is drained (as in test_drain). The kernel's clocks tell how much
CPU time the main threads and librdkafka's threads took; the samples tell how the main threads' is spread.
Samples that stand in a wait for Redis or Kafka count for nothing. Sampling takes processor time too and holds
up what is sampled, so the total is more than in test_drain: the shares are what is told. Needs py-spy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.deployment import Deployment
from benchmarks.test_drain import backlog

_EVENTS = 400_000
_USERS = 5000
_RATE_PER_S = 50  # eight samplers that unwind the frames of C come to no more
_SECONDS = 3
#: A stage, and what the name of a frame of it contains, with the class before a "_" as in names of C.
#: A sample belongs to the first that one of its frames matches, from the innermost frame outwards.
_STAGES = {
    "waiting": ("Channel__receive", "Consumer_poll"),
    "consume": ("PartitionConsumer_", "Consumer_consume"),
    "decode, validate": ("Intake_",),
    "reorder": ("Pipeline_on_records", "GapKeeper_", "Settler_", "InflightIds_", "Pipeline__take", "Buffer_"),
    "acquire": ("_acquire", "on_acquired", "_acquired"),
    "run handlers": ("Runner_", "BatchRun_", "simulate", "run_handler", "on_ran", "Keeper_", "Pipeline__run"),
    "finalize": ("Finalizer_", "_finalize", "on_finalized", "Page_observe", "latencies"),
    "commit": ("_commit",),
    "send and receive": ("Channel_", "decode"),
    "let go of what is done, and the loop itself": ("Worker_", "Pipeline_", "Page_", "SystemClock"),
}
_ROW = "{:<45} {:>8} {:>8}"


def stage_of(stack: str) -> str:
    """Of one sample: frames from the outermost to the innermost, separated by semicolons."""
    frames = [frame for frame in stack.split(";") if "eventproc/" in frame or "confluent_kafka/" in frame]
    for frame in reversed(frames):
        name = frame.partition(" (")[0].replace(".", "_")
        for stage, marks in _STAGES.items():
            if any(mark in name for mark in marks):
                return stage
    return "other"


def cpu_s_of_threads(pid: int) -> tuple[float, float]:
    """CPU seconds of the main thread, and of librdkafka's threads together."""
    main = rdkafka = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        used_s = int((task / "schedstat").read_text().split()[0]) / 1e9
        if int(task.name) == pid:
            main = used_s
        elif (task / "comm").read_text().startswith("rdk:"):
            rdkafka += used_s
    return main, rdkafka


def sample(pids: list[int], folder: Path) -> list[subprocess.Popen[bytes]]:
    """A sampler for each process; it writes to `<pid>.raw`."""
    options = ["--rate", str(_RATE_PER_S), "--duration", str(_SECONDS), "--format", "raw", "--native"]
    return [
        subprocess.Popen(
            ["py-spy", "record", "--pid", str(pid), *options, "--output", str(folder / f"{pid}.raw")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for pid in pids
    ]


def main() -> int:
    """Print a row for each stage."""
    if shutil.which("py-spy") is None:
        print("py-spy is not on PATH: install it (pip install py-spy)", file=sys.stderr)
        return 2
    locking = sys.argv[1] if len(sys.argv) > 1 else "event"
    events = int(sys.argv[2]) if len(sys.argv) > 2 else _EVENTS
    counts: Counter[str] = Counter()
    with Deployment(locking=locking) as deployment, tempfile.TemporaryDirectory() as folder:
        with deployment.frozen():
            deployment.produce(backlog(_USERS, events))
        pids = deployment.workers
        before = [cpu_s_of_threads(pid) for pid in pids]
        deployment.thaw()
        samplers = sample(pids, Path(folder))
        deployment.wait_processed(events)
        after = [cpu_s_of_threads(pid) for pid in pids]
        for sampler in samplers:
            sampler.wait()
        for path in Path(folder).glob("*.raw"):
            for line in path.read_text().splitlines():
                stack, _, count = line.rpartition(" ")
                if "Worker__turn" in stack:
                    counts[stage_of(stack)] += int(count)
        deployment.audit()
    main_us = sum(b[0] - a[0] for a, b in zip(before, after, strict=True)) / events * 1e6
    rdkafka_us = sum(b[1] - a[1] for a, b in zip(before, after, strict=True)) / events * 1e6
    del counts["waiting"]
    total = counts.total()
    print(_ROW.format(f"locking {locking}, {events:,} events", "share", "us/event"))
    for stage in (*_STAGES, "other"):
        if counts[stage]:
            share = counts[stage] / total
            print(_ROW.format(stage, f"{share:.1%}", f"{share * main_us:.2f}"))
    print(_ROW.format("main threads", "", f"{main_us:.2f}"))
    print(_ROW.format("librdkafka's threads", "", f"{rdkafka_us:.2f}"))
    print(f"{total:,} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
