"""Reads pairs from local JSONL, CSV and Parquet files, gzipped or not, with the columns that params name.

A path and column names go in, a frame of CANDIDATES comes out. Byte order marks and Windows line ends are no matter.
Does not know which split the pairs are for.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stm.errors import DataError
from stm.files import parse_object
from stm.prepare.candidates import make_frame
from stm.progress import Meter, track

_GZIP = b"\x1f\x8b"
_LONE_RETURN = re.compile(rb"\r(?!\n)")
_BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)
_RETURN = "\ufdd0".encode()  # stands for it meanwhile: Unicode reserves this character for such uses
_SEPARATORS = ";\t|"  # what tables have beside commas
_FAULTS = (pl.exceptions.PolarsError, csv.Error, UnicodeDecodeError)  # of a table that cannot be read


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a file, unzipped if need be, without a byte order mark."""
    path = Path(path)
    try:
        data = path.read_bytes()
        data = (gzip.decompress(data) if data.startswith(_GZIP) else data).removeprefix(codecs.BOM_UTF8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a broken gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16; save it as UTF-8")
    return data


def read_table(path: Path | str) -> pl.DataFrame:
    """All columns of a .jsonl, .csv or .parquet file, gzipped or not; `DataError` for any other or a broken one."""
    path = Path(path)
    kind = next((suffix[1:] for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if kind not in ("jsonl", "csv", "parquet"):
        raise DataError(f"{path}: the name must end in .jsonl, .csv or .parquet, or one of these and .gz")
    data = read_bytes(path)
    try:
        if kind == "jsonl":
            lines = enumerate(data.split(b"\n"), 1)
            rows = [parse_object(line, f"{path}, line {number}") for number, line in lines if line.strip()]
            return pl.DataFrame(rows, infer_schema_length=None)
        return _read_csv(data, infer_schema_length=None) if kind == "csv" else pl.read_parquet(data)
    except _FAULTS as error:
        raise DataError(f"{path} is not a readable {kind} file: {str(error).strip().split(chr(10))[0]}") from error


def require_columns(wanted: Iterable[str], there: Sequence[str], where: str, hint: str = "") -> None:
    """`DataError` that names the file, the missing columns and those that are there; `hint` says what else to do."""
    missing = [name for name in dict.fromkeys(wanted) if name not in there]
    if missing:
        found = ", ".join(sorted(there)) or "none"
        raise DataError(f"{where} has no column {', '.join(map(repr, missing))}; its columns are {found}{hint}")


def _read_jsonl(path: Path, names: Mapping[str, str]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {role: [] for role in names}
    there: set[str] = set()
    data = read_bytes(path)
    if not data.strip():
        raise DataError(f"{path} is empty; expected jsonl rows")
    lines = data.split(b"\n")
    for number, line in enumerate(track(lines, f"read {path.name}", len(lines)), 1):
        if not line.strip():
            continue
        row = parse_object(line, f"{path}, line {number}")
        there.update(row)
        require_columns([names["anchor"], names["positive"]], list(row), f"{path}, line {number},")
        for role, name in names.items():
            columns[role].append(_checked(row.get(name), role, f"{path}, line {number}, {name!r}"))
    if there:
        require_columns(names.values(), sorted(there), str(path))
    kinds = {role: pl.List(pl.String) if role == "negatives" else pl.String for role in names}
    return pl.DataFrame(columns, schema=kinds)


def _checked(value: Any, role: str, where: str) -> Any:
    if role == "negatives":
        value = [] if value is None else [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
            return value
        raise DataError(f"{where}: expected a text or a list of texts, not {type(value).__name__}")
    if value is None or isinstance(value, str):
        return value
    if role == "concept" and type(value) is int:  # True is an int to isinstance
        return str(value)
    wanted = "a text or a whole number" if role == "concept" else "a text"
    raise DataError(f"{where}: expected {wanted}, not {type(value).__name__}")


def _requote(data: bytes, separator: str, quote: str) -> bytes:
    """The rows as Python's csv reads them, with marks around every text that needs some.

    To polars a mark within an unquoted text, as in 5" pipe, begins a quoted one, and a quoted text that never ends goes
    on up to a mark of some later row. The latter is a `csv.Error`.
    """
    if not quote or quote.encode() not in data:
        return _BLANK_LINE.sub(b"", data)
    csv.field_size_limit(sys.maxsize)
    # A carriage return alone ends a row for csv, but not for polars; others write it into texts without quoting them.
    lines = io.TextIOWrapper(io.BytesIO(_LONE_RETURN.sub(_RETURN, data)), "utf-8", newline="")
    rows, start = csv.reader(lines, delimiter=separator, quotechar=quote, strict=True), 1
    written = io.BytesIO()
    texts = io.TextIOWrapper(written, "utf-8", newline="", write_through=True)
    writer = csv.writer(texts, delimiter=separator, quotechar=quote, lineterminator="\n")
    try:
        with Meter("read csv lines", data.count(b"\n")) as meter:
            for row in rows:
                if row:  # a blank line is no row, to `datasets` as well
                    writer.writerow(row)
                meter.advance(rows.line_num + 1 - start)
                start = rows.line_num + 1
    except csv.Error as error:
        raise csv.Error(
            f"the row that begins in line {start} has a quoted text that is never closed or goes on after its mark; "
            'double the marks within quoted texts, or set `quote: ""` if no text is quoted'
        ) from error
    return written.getvalue().replace(_RETURN, b"\r")


def _read_csv(data: bytes, separator: str = ",", quote: str = '"', **types: Any) -> pl.DataFrame:
    """All columns under their names without blanks around them; `types` says how polars infers what they hold."""
    table = pl.read_csv(_requote(data, separator, quote), separator=separator, quote_char=quote or None, **types)
    names = [name.strip() for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise csv.Error(f"the column {twice[0]!r} stands there twice, blanks around it left out")
    table.columns = names
    return table


def _read_table(path: Path, kind: str, separator: str, quote: str) -> pl.DataFrame:
    data = read_bytes(path)
    if not data.strip():
        raise DataError(f"{path} is empty; expected {kind} rows")
    try:
        if kind == "csv":
            return _read_csv(data, separator, quote, infer_schema=False)
        return pl.read_parquet(data)
    except _FAULTS as error:
        reason = str(error).strip().split("\n")[0]  # what follows is advice about arguments of polars
        advice = _advise(data, separator) if kind == "csv" else ""
        raise DataError(f"{path} is not a readable {kind} file: {reason}{advice}") from error


def _advise(data: bytes, separator: str) -> str:
    """What a csv file that cannot be read may need, by its bytes; empty if nothing shows."""
    try:
        head = data.decode("utf-8").split("\n", 1)[0]
    except UnicodeDecodeError:
        return "; save it as UTF-8"
    found = max(_SEPARATORS, key=head.count)
    return f"; set `separator: {json.dumps(found)}`" if found in head and separator not in head else ""


def read_pairs(
    path: Path | str, kind: str, names: Mapping[str, str], separator: str = ",", quote: str = '"'
) -> pl.DataFrame:
    """Pairs of a file of kind jsonl, csv or parquet; `names` maps anchor, positive, .. to the file's columns.

    `separator` and `quote` (empty: none) are those of a csv file. A missing file or column, a broken row and a column
    that holds no text are `DataError`s.
    """
    path = Path(path)
    if kind == "jsonl":
        return make_frame(_read_jsonl(path, names).to_dict(), str(path))
    frame = _read_table(path, kind, separator, quote)
    is_unsplit = kind == "csv" and frame.width == 1 and re.search(f"[{_SEPARATORS}]", frame.columns[0])
    hint = "; set `separator` to what stands between them" if is_unsplit else ""
    return select_columns(frame, names, str(path), hint)


def select_columns(frame: pl.DataFrame, names: Mapping[str, str], where: str, hint: str = "") -> pl.DataFrame:
    """CANDIDATES of a table with the named columns; raises like `require_columns`."""
    require_columns(names.values(), frame.columns, where, hint)
    return make_frame({role: frame[name] for role, name in names.items()}, where)
