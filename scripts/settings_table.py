"""Writes the settings table between the markers of a file: `python -m scripts.settings_table FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from eventproc.settings_load import settings_markdown

BEGIN = "<!-- settings: begin (make docs) -->"
END = "<!-- settings: end -->"


def table() -> str:
    """The table as it stands in a Markdown file, where a bare `<` would begin a tag."""
    return settings_markdown().replace("<", "&lt;")


def between(text: str) -> str:
    """What `text` has between the markers."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main(arguments: list[str]) -> int:
    """Rewrite the file; the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        print(f"{path} has no markers {BEGIN} and {END}", file=sys.stderr)
        return 1
    head, _, rest = text.partition(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
