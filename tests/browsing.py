"""What the browser tests share: a visitor who notes every complaint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PATIENCE = 120_000


@contextmanager
def serving() -> Iterator[str]:
    """Where `explorer serve`, started as a user starts it, says it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "explorer", "serve", "--port", "0", "--no-show"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"http://localhost:\d+/", line):
            yield found.group()
            break
    else:
        pytest.fail("the server did not start:\n" + "".join(lines))
    process.terminate()
    assert process.wait(30) is not None


class Visitor:
    """One browser session; it notes what the console and the network should not have seen."""

    def __init__(self, browser, address: str, state: str, width: int = 1440, height: int = 900):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", self._outside)
        self.address = address
        self.page.set_default_timeout(PATIENCE)
        self.prepare()
        self.page.goto(f"{address}{state}")

    def prepare(self) -> None:
        """What a page's own visitor does before the first request."""

    def _outside(self, request) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.complaints.append(f"left the machine: {request.url}")

    def poll(self, read, ready):
        """What `read` gives as soon as it is `ready`."""
        end = time.monotonic() + PATIENCE / 1000
        while True:
            now = read()
            if ready(now):
                return now
            assert time.monotonic() < end, f"still {now!r}"
            self.page.wait_for_timeout(40)

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
