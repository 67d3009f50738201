"""Described workloads: what is produced, and the ledger of what is expected of each record."""

from eventproc.workload.generate import Kind, Record, Workload
from eventproc.workload.ledger import Ledger, LedgerWriter, Line, read_ledger
from eventproc.workload.produce import Produced, Progress, produce

__all__ = [
    "Kind",
    "Ledger",
    "LedgerWriter",
    "Line",
    "Produced",
    "Progress",
    "Record",
    "Workload",
    "produce",
    "read_ledger",
]
