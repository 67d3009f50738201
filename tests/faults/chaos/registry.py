"""All kinds of faults, by name."""

from __future__ import annotations

from tests.faults.chaos import of_kafka, of_processes, of_redis
from tests.faults.chaos.fault import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "of_kafka", "of_processes", "of_redis"]
