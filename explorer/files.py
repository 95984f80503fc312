"""Files that are whole or not there: written beside their place, flushed, and moved."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors

from explorer.errors import BadFile

PARTIAL = ".partial"
"""How the name of a file ends while it is written."""


def write_atomic(file: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk, and move it over `file`.

    Raises:
        BadFile: the disk is full or not writable; what `file` held before is untouched.
    """
    file, temporary = Path(file), None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=PARTIAL)
        os.close(handle)
        write(Path(temporary))
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's are for their owner alone
        os.replace(temporary, file)
    # safetensors and torch report a full disk in their own ways.
    except (OSError, RuntimeError, safetensors.SafetensorError) as problem:
        raise unwritten(file, problem) from problem
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def unwritten(file: Path, problem: Exception) -> BadFile:
    """The error to raise when a file cannot be written; torch's own message does not say that a disk is full."""
    room = "its folder cannot be asked for free space"
    with contextlib.suppress(OSError):
        room = f"{shutil.disk_usage(file.parent).free / 2**20:.0f} MiB are free there"
    return BadFile(
        f"{file} could not be written ({room}): {problem}. What was saved before is intact; make room or choose "
        "another folder, and run again to resume."
    )


def sweep(folder: Path | str) -> None:
    """Remove the temporary files of a process that was killed while writing."""
    for file in Path(folder).glob(f".*{PARTIAL}"):
        file.unlink(missing_ok=True)


def sha256(file: Path | str) -> str:
    """Hex digest of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
