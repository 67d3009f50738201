"""All kinds of faults, by name."""

from __future__ import annotations

from tests.faults.chaos import of_kafka, of_mock, of_processes, of_redis
from tests.faults.chaos.fault import FAULTS, Fault

MIXED = {name: it for name, it in FAULTS.items() if "mock" not in it.touches}

__all__ = ["FAULTS", "MIXED", "Fault", "of_kafka", "of_mock", "of_processes", "of_redis"]
