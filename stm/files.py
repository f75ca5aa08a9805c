"""Whole-or-nothing output, and hashes of what lies on disk.

Writers get a scratch path beside the target and the target appears by rename, so that an interrupted stage never leaves
something that could be taken for a result. Knows nothing of what the files hold.
"""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from stm.errors import DataError, STMError

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
ABANDONED_SECONDS = 86_400


def _scratch(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise STMError(f"cannot create the folder {path.parent}: {error.strerror}; check its permissions") from error
    _sweep(path)
    return path.parent / f".{path.name}.{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


def _sweep(path: Path) -> None:
    """Remove what writers of the same target left behind that were killed; those still at work keep theirs.

    Of another machine on the same disk nobody knows which processes run: what is its own goes when it is old.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        host, _, rest = left.name.removesuffix(".partial").rpartition(".")[2].partition("-")
        pid = rest.partition("-")[0]
        if not pid.isdecimal():
            continue
        if not _is_running(int(pid)) if host == HOST else _age(left) > ABANDONED_SECONDS:
            _discard(left)


def _age(path: Path) -> float:
    """Seconds since the path was written; 0 if it has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_running(pid: int) -> bool:
    """Whether the process can still write; one that was killed may be there as a zombie for a while."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_directory(path: Path | str) -> None:
    """Remove a folder that is whole until it is gone: it is renamed first, so that a kill leaves no half of it."""
    shutil.rmtree(_move_aside(Path(path)), ignore_errors=True)


def _move_aside(path: Path) -> Path:
    """Rename a folder, if it is there, to a scratch path, which is returned."""
    aside = _scratch(path)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
    return aside


def _swap_in(scratch: Path, path: Path) -> None:
    """Put the folder `scratch` in the place of `path`, whose former folder is deleted only after that."""
    aside = _move_aside(path)
    try:
        os.replace(scratch, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _swap_in(scratch, path)  # another writer was faster; the last one wins
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open_files(folder: Path) -> None:
    """Give the files of a folder the mode that the umask gave the folder: safetensors writes its own for the owner
    alone, whatever the umask, so that neither a team nor a container could read a model.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a scratch path; rename it to `path` when the block ends without an error, remove it otherwise."""
    path = Path(path)
    if path.is_dir():
        raise STMError(f"cannot write {path}: it is a folder; name a file, for example one in it")
    scratch = _scratch(path)
    try:
        yield scratch
        os.replace(scratch, path)
    except PermissionError as error:
        raise STMError(f"cannot write {path}: {error.strerror}; check its permissions") from error
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield an empty scratch directory; swap it in for `path` when the block ends without an error."""
    path = Path(path)
    scratch = _scratch(path)
    try:
        scratch.mkdir()
        yield scratch
        _open_files(scratch)
        _swap_in(scratch, path)
    except PermissionError as error:
        raise STMError(f"cannot write {path}: {error.strerror}; check its permissions") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}; JSON outputs hold finite numbers only")
    if isinstance(value, dict):
        for key, item in value.items():
            _finite(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _finite(item, f"{where}[{index}]")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as sorted, indented JSON; a NaN or an infinity is a `DataError` that names its place."""
    _finite(value, Path(path).name)
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or broken file is a `DataError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; run `dvc repro` to make it") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it and run `dvc repro`") from error


ARRAY = "a JSON array cannot be read here: write one object per line (`jq -c '.[]' FILE`)"


def decode_line(line: bytes, where: str) -> str:
    """The text of a line; `DataError` if it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8; save the file as UTF-8") from error


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object on a line of UTF-8; `DataError` for anything else, and for half a character, which no file can
    hold.
    """
    try:
        row = json.loads(decode_line(line, where))
    except (ValueError, RecursionError) as error:
        hint = f"; {ARRAY}" if line.lstrip()[:1] == b"[" else ""
        raise DataError(f"{where}: not JSON ({error}){hint}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object" + (f"; {ARRAY}" if isinstance(row, list) else ""))
    if b"\\ud" in line.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: holds half a character (a lone surrogate like \\ud83d); mend the text"
            ) from error
    return row


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, in the order given."""
    with atomic_file(path) as scratch, scratch.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def sha256_text(*parts: str) -> str:
    """Hex digest of the parts, each closed by a zero byte so that ("ab", "c") and ("a", "bc") differ."""
    return sha256_texts(parts)


def sha256_texts(parts: Iterable[str]) -> str:
    """As `sha256_text`, for more parts than should be in memory at once."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_code(modules: Iterable[str], libraries: Iterable[str]) -> str:
    """The hash of the source of modules of ours, as "encode" or "train/loop", and of the versions of libraries."""
    package = Path(__file__).parent
    sources = (sha256_file(package / f"{name}.py") for name in modules)
    return sha256_text(*sources, *(f"{library}={version(library)}" for library in libraries))


def sha256_tree(path: Path | str) -> str:
    """Hex digest of a file, or of a folder: the sorted relative names and the bytes of all files in it, linked ones
    too.
    """
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    files = sorted(_files_below(path))
    return sha256_text(*(f"{p.relative_to(path).as_posix()}:{sha256_file(p)}" for p in files))


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file in a folder, also through links to folders, unless those lead back to one of `above`."""
    above = (*above, folder.resolve())
    for path in folder.glob("*"):
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _files_below(path, above)
