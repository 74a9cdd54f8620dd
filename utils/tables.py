"""Tables as text: for the terminal, for Markdown and for the page."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells as they are shown; the first column names the row, notes stand below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
