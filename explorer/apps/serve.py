"""The dashboard as a local web server, and as a cell of a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import webbrowser
from collections.abc import Callable

import panel as pn
import torch
from panel.io.resources import LOCAL_DIST
from panel.io.state import set_curdoc

from explorer.apps import catalogue
from explorer.apps.pages import PAGES, Page
from explorer.apps.session import Session
from explorer.apps.worker import Worker
from explorer.errors import BadValue
from explorer.knobs import SamplerKnobs

DEMO = "#lab?model=digits&n=2000&n_steps=5&a.model=digits&a.solver=euler&a.n_steps=9"
LOCAL = ("localhost", "127.0.0.1", "::1")
_worker: Worker | None = None


def worker() -> Worker:
    """The process's one compute slot."""
    global _worker
    if _worker is None:
        _worker = Worker(None if "OMP_NUM_THREADS" in os.environ else torch.get_num_threads())
    return _worker


def poster(doc) -> Callable[[Callable[[], None]], None]:
    """A function that runs another one in the thread of `doc`, under its lock: the only way other threads reach a page."""

    def post(call: Callable[[], None]) -> None:
        def run() -> None:
            with set_curdoc(doc):
                call()

        if doc.session_context is not None and not doc.session_context.destroyed:
            doc.add_next_tick_callback(run)

    return post


class Ear:
    """The thread of a page in a notebook: the one in which the browser's messages arrive, a subshell's where the kernel has them.

    Whatever else touches the page runs there too. From another thread, patches would mix with those that answer the browser, and
    Panel writes a patch as several messages.
    """

    def __init__(self):
        self._loop = asyncio.get_event_loop()

    def hear(self) -> None:
        with contextlib.suppress(RuntimeError):  # called from outside of a loop, as a test does
            self._loop = asyncio.get_running_loop()

    def post(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is looking any more
            self._loop.call_soon_threadsafe(call)


def _opener(page: Page) -> Callable:
    def build():  # a plain function: Panel would print a functools.partial instead of calling it
        # Without this a page that reconnects to a new session would ask a public server for Panel's style sheets.
        pn.state.curdoc.template_variables["dist_url"] = LOCAL_DIST
        store = page.store(worker(), poster(pn.state.curdoc))
        pn.state.on_session_destroyed(lambda context: store.close())
        rail = [{"title": p.title, "href": f"./{p.slug}", "icon": p.icon, "current": p is page} for p in PAGES]
        return page.build(store, rail)

    return build


def serve(port: int = 5006, address: str = "localhost", show: bool = True, *, demo: bool = False, block: bool = True):
    """Serves the dashboard, prints its address, and runs until interrupted.

    Args:
        port: 0 takes a free one.
        address: where to listen. Anything but localhost lets other machines in, and a warning says so.
        show: open the browser, where there is one.
        demo: the address opens a comparison that is already set up: two solvers at the same cost.
        block: False returns the started server at once; the caller runs `server.io_loop`.
    Raises:
        BadValue: the port is out of range or taken.
    """
    if not 0 <= port <= 65535:
        raise BadValue(f"port {port}: expected 0 to 65535.")
    apps = {f"/{page.slug}": _opener(page) for page in PAGES}
    apps["/"] = apps[f"/{PAGES[0].slug}"]
    catalogue.warm()
    try:
        server = pn.serve(
            apps,
            port=port,
            address=address,
            title="trajectory-explorer",
            show=False,
            start=False,
            verbose=False,
            unused_session_lifetime_milliseconds=30_000,
            check_unused_sessions_milliseconds=5_000,
        )
    except OSError as error:
        raise BadValue(
            f"cannot listen on {address}:{port} ({error.strerror or error}): choose another --port."
        ) from None
    url = f"http://{address}:{server.port}/" + (DEMO if demo else "")
    if address not in LOCAL:
        print(
            f"warning: listening on {address}: every machine that can reach this one can use the dashboard. "
            "Leave the address out to stay private.",
            file=sys.stderr,
        )
    print(f"trajectory-explorer: {url}  (ctrl-c stops it)", flush=True)
    server.start()
    if show:
        server.io_loop.call_later(0.3, lambda: webbrowser.open(url))
    if block:
        try:
            server.io_loop.start()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            server.stop()
            worker().close()
    return server


def sampler_lab(model: str = "digits", knobs: SamplerKnobs | None = None):
    """The Sampler Lab for a notebook's cell, as a Panel object.

    Args:
        model: name of a bundled model.
        knobs: setting to open; None is the default of the model.
    """
    ear = Ear()
    session = Session(worker(), ear.post, heard=ear.hear)
    session.model_name = model
    session.knobs = knobs or SamplerKnobs(**catalogue.defaults(model))
    return PAGES[0].build(session, embedded=True)
