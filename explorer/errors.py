"""Errors a user is meant to read: what was given, what was expected, what to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ExplorerError(Exception):
    """Base of every error this package raises on purpose; command line and dashboard show its text without a traceback."""


class UnknownName(ExplorerError, KeyError):
    """A name that is in no list: the message carries the nearest match and all valid names.

    Args:
        kind: what the name should have named, e.g. "solver".
        given: what was given.
        valid: the names that exist.
    """

    def __init__(self, kind: str, given: object, valid: Iterable[str]):
        self.kind, self.given, self.valid = kind, given, sorted(valid)
        near = difflib.get_close_matches(str(given), self.valid, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        self.message = f"unknown {kind} {given!r}.{hint} Valid: {', '.join(self.valid) or '(none)'}."
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class BadValue(ExplorerError, ValueError):
    """A value outside what a knob, a shape or a file format allows."""


class BadFile(ExplorerError, OSError):
    """A file that is missing, truncated, tampered with or of another format."""


class MissingExtra(ExplorerError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str):
        super().__init__(
            f"{needed_for} needs {package}, which is not installed: pip install 'trajectory-explorer[{extra}]'"
        )


class NonFinite(ExplorerError, FloatingPointError):
    """NaN or infinity in a run.

    Attributes:
        step: index of the solver or training step that produced it first.
        samples: positions in the batch of the samples that are not finite.
        t: time at the start of that step, in the model's own path; None outside sampling.
        kept: the tensor as far as it got, with the finite samples intact; None where nothing was kept.
    """

    def __init__(self, message: str, *, step: int, samples: Sequence[int] = (), t: float | None = None, kept=None):
        super().__init__(message)
        self.step, self.samples, self.t, self.kept = step, list(samples), t, kept
