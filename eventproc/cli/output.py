"""Tables that fit the terminal, and are plain lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[str] = ()) -> None:
    """Print a table without frames; numbers to the right, as are the columns' names above them.

    The last column is cut on a terminal that is too narrow, and never when piped. `left` names columns
    that are not to be aligned as numbers although they hold some.
    """
    listed = [[value if isinstance(value, str) else str(value) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for index, name in enumerate(columns):
        numbers = name not in left and all(_is_number(row[index]) for row in listed)
        last = index == len(columns) - 1
        table.add_column(
            name,
            justify="right" if numbers else "left",
            no_wrap=True,
            overflow="ellipsis" if last else "fold",
        )
    for row in listed:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    widths = [
        max([len(name), *(len(_printable(row[i])) for row in listed)]) + 2 for i, name in enumerate(columns)
    ]
    width = max(80, 2 * sum(widths))
    if sys.stdout.isatty():  # rather lines that the terminal wraps than an id cut in two
        width = max(console.width, sum(widths[:-1]) + len(columns[-1]) + 2)
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _printable(text: str) -> str:
    """What another program wrote must not steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).lstrip("-").isdecimal()
