"""Without tests.source nothing here can run; tests/unit/test_from_source.py runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.pluginmanager.has_plugin("tests.source") else True
