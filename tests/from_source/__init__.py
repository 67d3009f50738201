"""Tests that change parts of what is compiled, or stand in for them: they run with `-p tests.source`."""
