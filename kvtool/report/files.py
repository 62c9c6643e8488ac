"""`--out DIR`: one file per form of a result, all written or none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.results import Struct, encode
from kvtool.system.errors import KvtoolError
from kvtool.system.files import write_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CsvValue = str | int | float | bool | None


def check_writable(directory: Path) -> None:
    """Make `directory` before long work starts. Raises KvtoolError where nothing could be written into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise KvtoolError(f"--out {directory}: cannot make this folder ({reason})") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise KvtoolError(f"--out {directory}: this folder is not writable")


def write_result(
    directory: Path,
    name: str,
    document: Struct,
    *,
    rows: Sequence[Mapping[str, CsvValue]],
    figure: Figure | None = None,
    html: str | None = None,
    more: Mapping[str, Figure] | None = None,
) -> list[Path]:
    """Write `name`.json, .csv, and .png and report.html where there is one, a .png of each figure in `more`; the paths
    written. Raises KvtoolError.
    """
    files = {f"{name}.json": encode(document), f"{name}.csv": csv_bytes(rows)}
    files |= {f"{name}.png": png_bytes(figure)} if figure is not None else {}
    files |= {f"{other}.png": png_bytes(another) for other, another in (more or {}).items()}
    if html is not None:
        files["report.html"] = html.encode()
    check_writable(directory)
    write_all({directory / file_name: data for file_name, data in files.items()})
    return [directory / file_name for file_name in files]


def csv_bytes(rows: Sequence[Mapping[str, CsvValue]]) -> bytes:
    """One line a row under a line of column names; an absent value is an empty cell."""
    import pandas as pd

    # dtype object: pandas would turn a column of ints with a gap into floats.
    return pd.DataFrame(rows, dtype=object).to_csv(index=False).encode()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG at 150 dots an inch."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
