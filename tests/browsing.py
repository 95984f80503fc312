"""What the browser tests share: a visitor who notes every complaint."""

from __future__ import annotations

import time

PATIENCE = 120_000


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
