"""Chaos: all faults mixed at random over a load, round after round, each judged by the checker.

A round has a topic, a Redis, two hosts and a configuration of its own. In most of them nothing may be told
apart from a run without faults; every third is lossy: there Redis forgets, and the workload is one of which
the log alone decides what comes of it, so that the checker can still judge every event.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventproc.workload import Workload
from tests.faults.chaos.configurations import draw
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.registry import MIXED, Fault
from tests.faults.chaos.report import ChaosReport, Injected, RoundReport
from tests.faults.chaos.servers import Servers
from tests.threads import stacks

PAUSE_S = (0.2, 5.0)
ROUND_S = 60.0
PARTITIONS = 4
HOSTS = 2
_AT_ONCE = 6
#: A fault that takes longer to heal (hosts and servers start again, meanwhile) never will.
_HEAL_TIMEOUT_S = 600
#: A fault that met nobody (another one had stopped everything) comes again after so many others.
_SOON = 5
_EVENTS_PER_USER = 100
#: On a slow host not every kind hits within the time; a run that is clean otherwise goes on for them.
_MORE_ROUNDS = 3
_SPARE = 1.3  # the load is not to be over before the round is


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, from which seed; `keep` is where a round's files stay when it fails."""

    minutes: float
    seed: int
    rate_per_s: float
    keep: Path


def run(plan: Plan, say: Callable[[str], None]) -> ChaosReport:
    """All rounds. Returns in any case; the report tells whether all was well."""
    report = ChaosReport(plan.seed, plan.rate_per_s, {name: Injected() for name in MIXED})
    rounds = max(3, round(plan.minutes * 60 / ROUND_S))
    seconds = plan.minutes * 60 / rounds
    threads = ThreadPoolExecutor(_AT_ONCE)
    try:
        with Servers() as servers:
            number = 0
            while number < rounds or (number < rounds + _MORE_ROUNDS and report.good_but_for_hits):
                it = _Round(
                    plan, number, seconds, report, servers, threads, say, only_missed=number >= rounds
                )
                report.rounds.append(it.run())
                number += 1
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # one may hang: it is told, and not waited for
    return report


def kinds_for(lossy: bool) -> list[Fault]:
    """Those that may be mixed. A lossy round is without those that keep the producer waiting.

    They leave gaps in the log's time that are none when it is read again.
    """
    if lossy:
        return [it for it in MIXED.values() if "kafka" not in it.touches]
    return [it for it in MIXED.values() if it.loss == "nothing"]


def workload_for(topic: str, lossy: bool, seconds: float, rate_per_s: float, seed: int) -> Workload:
    """A bit more than what fits into the round."""
    mixed: dict[str, Any] = {
        "duplicate_ratio": 0.02,
        "stale": 200,
        "conflicts": 200,
        "missing_seqs": 50,
        "late_events": 50,
    }
    return Workload(
        topic=topic,
        users=int(seconds * _SPARE * rate_per_s / _EVENTS_PER_USER) + 10,
        events_per_user=_EVENTS_PER_USER,
        shuffle_window=200,
        failing_ratio=0.01,
        unsequenced_ratio=0.01,
        invalid_records=100,
        tombstones=20,
        rate=rate_per_s,
        seed=seed,
        **({} if lossy else mixed),
    )


class _Round:
    def __init__(
        self,
        plan: Plan,
        number: int,
        seconds: float,
        report: ChaosReport,
        servers: Servers,
        threads: ThreadPoolExecutor,
        say: Callable[[str], None],
        only_missed: bool,
    ) -> None:
        self._plan = plan
        self._number = number
        self._seconds = seconds
        self._report = report
        self._servers = servers
        self._threads = threads
        self._say = say
        self._only_missed = only_missed
        missed_are_lossy = any(MIXED[name].loss != "nothing" for name in report.missed)
        self._lossy = missed_are_lossy if only_missed else number % 3 == 2
        self._rng = random.Random(f"{plan.seed}/{number}")
        self._configuration = draw(self._rng)
        self._kinds = kinds_for(self._lossy)
        self._deck: list[Fault] = []
        self._active: dict[Fault, Future[None]] = {}
        self._injections = 0
        self._problems: list[str] = []
        self._writing = threading.Lock()
        self._begun = 0.0

    def run(self) -> RoundReport:
        folder = self._plan.keep / f"seed-{self._plan.seed}-round-{self._number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = RoundReport(self._number, self._lossy, str(self._configuration))
        settings = self._configuration.settings
        try:
            with Ground(self._servers, folder, partitions=PARTITIONS, hosts=HOSTS, **settings) as ground:
                self._carry_out(ground, result)
        except Exception:  # whatever it is, it is a finding
            self._problems.append(traceback.format_exc())
        result.problems = self._problems
        if not result.problems:
            shutil.rmtree(folder)
        self._say(result.line())
        for problem in result.problems:
            self._say(problem)
        return result

    def _carry_out(self, ground: Ground, result: RoundReport) -> None:
        plan = self._plan
        ground.start()
        workload = workload_for(
            ground.topic, self._lossy, self._seconds, plan.rate_per_s, plan.seed * 1000 + self._number
        )
        self._begun = time.monotonic()
        load = ground.put_under(workload)
        until = self._begun + self._seconds
        while time.monotonic() < until and not self._problems and not load.over and not self._done:
            time.sleep(self._rng.uniform(*PAUSE_S))
            self._inject_one(ground)
        hung = wait(self._active.values(), _HEAL_TIMEOUT_S).not_done
        names = [fault.name for fault, running in self._active.items() if running in hung]
        assert not names, f"not healed within {_HEAL_TIMEOUT_S} s: {', '.join(names)}\n{stacks()}"
        for running in self._active.values():
            running.result()
        load.stop()
        produced = load.end()
        ground.drain()
        result.seconds = time.monotonic() - self._begun
        judged = ground.judge()
        result.records, result.totals = produced.acknowledged, judged.as_json()["totals"]
        if not judged.clean:
            self._problems += judged.lines()
        ground.stop()

    @property
    def _done(self) -> bool:
        return self._only_missed and not self._report.missed

    def _inject_one(self, ground: Ground) -> None:
        """The next fault of the deck that touches nothing another one touches now."""
        self._active = {fault: running for fault, running in self._active.items() if not running.done()}
        if len(self._active) == _AT_ONCE:
            return
        if not self._deck:
            self._deck = self._rng.sample(self._kinds, len(self._kinds))
            # first those without a hit so far, and among them those that have fewer rounds for it
            self._deck.sort(key=lambda it: (self._report.kinds[it.name].hits > 0, it.loss == "nothing"))
        touched = {thing for fault in self._active for thing in fault.touches}
        for fault in list(self._deck):
            if not fault.touches & touched:
                with self._writing:
                    self._deck.remove(fault)
                self._injections += 1
                rng = random.Random(f"{self._plan.seed}/{self._number}/{self._injections}")
                self._active[fault] = self._threads.submit(self._let_happen, fault, ground, rng)
                return

    def _let_happen(self, fault: Fault, ground: Ground, rng: random.Random) -> None:
        begun = time.monotonic()
        hits = 0
        try:
            injection = fault.inject(ground, rng)
            time.sleep(injection.lasts_s)
            hits = injection.heal()
        except Exception:
            self._problems.append(f"{fault.name}:\n{traceback.format_exc()}")
        with self._writing:
            self._report.kinds[fault.name].add(hits)
            if not self._report.kinds[fault.name].hits:
                self._deck.insert(_SOON, fault)
        at = begun - self._begun
        self._say(f"  {at:6.1f} s  {fault.name}: {time.monotonic() - begun:.1f} s, hits {hits}")
