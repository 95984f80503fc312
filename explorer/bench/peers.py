"""Code of others that no package index has, found in checkouts that environment variables name; it is timed, and no part of this package.

Each function returns a module, or raises ImportError where there is none: the peer is then listed as absent.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

EDM_FOLDER, K_DIFFUSION_FOLDER = "EXPLORER_EDM", "EXPLORER_KDIFFUSION"
"""Environment variables that name a checkout of NVlabs/edm, and one of crowsonkb/k-diffusion."""

UNUSED = ("torchsde", "torchvision", "torchvision.transforms")
"""What k_diffusion.sampling imports on behalf of functions that are not timed."""


def edm(module: str) -> ModuleType:
    """A module of NVlabs/edm, "training.networks" or "generate" say."""
    folder = _checkout(EDM_FOLDER, module.replace(".", "/") + ".py")
    with _importing_from(folder):
        return importlib.import_module(module)


def k_diffusion() -> ModuleType:
    """k_diffusion.sampling, of the installed package or of the checkout; without the rest of that package, which asks for much more."""
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError:
        folder = _checkout(K_DIFFUSION_FOLDER, "k_diffusion/sampling.py")
    package = ModuleType("k_diffusion")
    package.__path__ = [str(folder / "k_diffusion")]
    with _standing_in(UNUSED):
        sys.modules["k_diffusion"] = package
        try:
            return importlib.import_module("k_diffusion.sampling")
        except ImportError:
            del sys.modules["k_diffusion"]
            raise


def _checkout(variable: str, file: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not (Path(folder) / file).is_file():
        raise ImportError(f"{variable} names no checkout with a file {file}")
    return Path(folder)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _standing_in(names: tuple[str, ...]) -> Iterator[None]:
    """Empty modules under these names, where they are missing, until the block ends."""
    made = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = made_one = ModuleType(name)
            made_one.__path__ = []
            made_one.functional = None
            made.append(name)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
