"""Adds up JUnit reports and prints `N passed, M failed`; exit 1 if anything failed or a report is missing.

usage: count_tests.py REPORT.xml...

Needs no more than Python itself: it runs even when the environment could not be made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def count(report: Path) -> tuple[int, int]:
    """Passed and failed tests of one report; (0, 1) if there is none, or none that can be read.

    Errors count as failures, and so do skips: a test that did not run proves nothing.
    """
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"no test report {report}: {error}", file=sys.stderr)
        return 0, 1
    total = failed = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += sum(int(suite.get(key, 0)) for key in ("failures", "errors", "skipped"))
    return (max(total - failed, 0), failed) if total else (0, 1)


def main(reports: list[str]) -> int:
    """Print the line; the exit code."""
    counts = [count(Path(report)) for report in reports] or [(0, 1)]
    passed, failed = (sum(column) for column in zip(*counts, strict=True))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
