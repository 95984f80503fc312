"""What a benchmark reports: one number with what bounds it, and what others need for the same work."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from explorer.bench.clock import Times
from explorer.files import write_atomic

VERSIONS_OF = (
    "trajectory-explorer",
    "torch",
    "numpy",
    "scipy",
    "torchdiffeq",
    "diffusers",
    "torchmetrics",
    "panel",
    "playwright",
)
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Row:
    """One benchmark on one machine.

    Attributes:
        name: as given to `explorer bench`.
        ours: median over `n_runs` rounds, in `unit`.
        unit: of every number of the row; times, so smaller is better, but for "images/s".
        limit: the bare cost that no implementation beats, measured in the same rounds; `limit_is` says what that is.
        ratio: how much dearer ours is than the limit, median over rounds; 1 is perfect.
        target: what `ratio` should stay below; None where nothing was promised about it.
        peers: name -> median of another library on the same work.
        speedup: fastest peer over ours; None without peers.
        absent: peers that are not installed here.
        floor: what the work costs written out by hand, where that is more than the limit; None where it was not measured.
        checks: name -> relative difference of our result from another one that should be equal.
        n_runs: rounds; `fewer_runs` names what was too slow for all of them.
        min, median, max: of ours.
        note: the setting, in words.
    """

    name: str
    ours: float
    unit: str
    limit: float | None
    limit_is: str
    ratio: float | None
    target: float | None
    peers: Mapping[str, float]
    speedup: float | None
    absent: tuple[str, ...]
    checks: Mapping[str, float]
    n_runs: int
    fewer_runs: Mapping[str, int]
    min: float
    median: float
    max: float
    note: str = ""
    floor: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        times: Times,
        *,
        unit: str,
        limit_is: str,
        target: float | None = None,
        absent: Iterable[str] = (),
        checks: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Row:
        """The row of seconds per round of "ours", "limit" and "floor" (may be missing) and the peers (all the others)."""
        scaled = {key: [s * PER_SECOND[unit] for s in seconds] for key, seconds in times.items()}
        middle = {key: statistics.median(values) for key, values in scaled.items()}
        ours, limit, n_runs = scaled["ours"], scaled.get("limit"), len(scaled["ours"])
        peers = {key: value for key, value in middle.items() if key not in ("ours", "limit", "floor")}
        return cls(
            name=name,
            ours=middle["ours"],
            unit=unit,
            limit=middle.get("limit"),
            limit_is=limit_is,
            ratio=statistics.median(a / b for a, b in zip(ours, limit, strict=True)) if limit else None,
            target=target,
            peers=peers,
            speedup=min(peers.values()) / middle["ours"] if peers else None,
            absent=tuple(absent),
            checks=dict(checks or {}),
            n_runs=n_runs,
            fewer_runs={key: len(values) for key, values in scaled.items() if len(values) < n_runs},
            min=min(ours),
            median=middle["ours"],
            max=max(ours),
            note=note,
            floor=middle.get("floor"),
        )

    def as_rate(self, n: int, unit: str) -> Row:
        """The same row as a throughput: n things in the time of each number."""
        per_second = PER_SECOND[self.unit]

        def rate(value: float) -> float:
            return n * per_second / value

        values = asdict(self) | {
            "unit": unit,
            "ours": rate(self.ours),
            "limit": None if self.limit is None else rate(self.limit),
            "floor": None if self.floor is None else rate(self.floor),
            "peers": {key: rate(value) for key, value in self.peers.items()},
            "min": rate(self.max),
            "median": rate(self.median),
            "max": rate(self.min),
        }
        return Row(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def header() -> dict[str, Any]:
    """Where, when and with what the rows were measured."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS_OF}},
    }


def document(rows: Iterable[Row]) -> dict[str, Any]:
    """A run as JSON: the header and `rows`."""
    return {**header(), "rows": [row.to_dict() for row in rows]}


def save(rows: Iterable[Row], file: str | os.PathLike) -> None:
    """Write the document, whole or not at all."""
    text = json.dumps(document(rows), indent=2) + "\n"
    write_atomic(file, lambda part: part.write_text(text, encoding="utf-8"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
