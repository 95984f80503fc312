"""Notebook kernels that find their packages imported: each is forked from a process that has imported them and done nothing else.

A kernel of its own imports torch, Panel and matplotlib for some four seconds before its first line; there are 22 notebooks. Nothing
that one does is seen by another.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time

PACKAGES = (
    "ipykernel.kernelapp",
    "torch",
    "explorer.apps.notebook",
    "explorer.papers",
    "matplotlib_inline.backend_inline",
)


class Forked:
    """A forked kernel with the methods that jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.Process):
        self.process, self.pid = process, process.pid
        self.terminate, self.kill = process.terminate, process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def begin(arguments: list[str], env: dict[str, str], folder: str | None) -> None:
    """Becomes the kernel that `python -m ipykernel_launcher ARGUMENTS` is; does not return before it ends."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder or ".")
    parent = (
        f"--IPKernelApp.parent_handle={env.get('JPY_PARENT_PID', 0)}"  # read from there when ipykernel was imported
    )
    sys.argv = ["ipykernel_launcher", *arguments, parent]
    importlib.import_module("ipykernel.kernelapp").launch_new_instance()


def launch_kernel(cmd: list[str], env: dict[str, str], cwd: str | None = None, **_) -> Forked:
    """In place of `jupyter_client.launcher.launch_kernel`."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=begin, args=(cmd[cmd.index("ipykernel_launcher") + 1 :], dict(env), cwd))
    process.start()
    while process.is_alive() and os.getpgid(process.pid) != process.pid:
        time.sleep(0.01)  # a kernel is ended by signals to its group, which until now is ours
    return Forked(process)


def prepare(monkeypatch) -> None:
    """Kernels are forked from now on, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PACKAGES))
    # matplotlib reads this when it is imported; in a kernel of its own ipykernel has set it by then
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", launch_kernel)
