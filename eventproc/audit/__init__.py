"""The checker: audits Redis and Kafka against what was produced (CONTRACT sections 3, 4 and 6).

What is judged, and what may legitimately vary, is told where it is judged: `events` (each event by itself),
`sequence` (each user's order, gaps, `next:`), `letters` (dead letters), `positions` (partitions).
"""

from eventproc.audit.report import KINDS, Finding, Report, Totals
from eventproc.audit.run import audit, wait_until_idle

__all__ = ["KINDS", "Finding", "Report", "Totals", "audit", "wait_until_idle"]
