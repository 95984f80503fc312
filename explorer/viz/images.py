"""Pictures: batches of images as one array, one PNG, one figure; a sample on its way from noise to data."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import Backend, canvas
from explorer.viz.theme import Theme, theme_of

GAP, MARGIN = 3, 8  # screen pixels between images of a figure, and around them


def to_uint8(x: Any) -> np.ndarray:
    """Images in [-1, 1] as bytes: (B, C, H, W) float, tensor or array -> (B, H, W, 3) uint8. Clipped."""
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise BadValue(f"images are (batch, 1 or 3 channels, height, width), got shape {x.shape}.")
    x = np.nan_to_num(x.astype(np.float64), nan=-1.0)
    pixels = np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def grid(x: Any, columns: int | None = None, *, scale: int = 1, gap: int = 1, paper: str = "#ffffff") -> np.ndarray:
    """Images side by side: (B, C, H, W) in [-1, 1] -> (height, width, 3) uint8.

    Args:
        columns: images per row; by default about square.
        scale: each pixel becomes a square of this side (nearest neighbour, so small images stay honest).
        gap: pixels between images, of colour `paper`.
    """
    pixels = to_uint8(x).repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, _ = pixels.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    background = [int(paper[i : i + 2], 16) for i in (1, 3, 5)]
    out = np.empty((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), np.uint8)
    out[:] = background
    for k in range(n):
        r, c = divmod(k, columns)
        out[r * (h + gap) : r * (h + gap) + h, c * (w + gap) : c * (w + gap) + w] = pixels[k]
    return out


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of an (H, W, 3) uint8 array, without an imaging library."""
    pixels = np.ascontiguousarray(pixels, np.uint8)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadValue(f"a picture is (height, width, 3) bytes, got shape {pixels.shape}.")
    h, w, _ = pixels.shape
    lines = np.zeros((h, 1 + 3 * w), np.uint8)  # each line begins with its filter: 0, none
    lines[:, 1:] = pixels.reshape(h, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)  # 8 bits, RGB
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(pixels: np.ndarray) -> str:
    """The picture as a `data:` address for a web page."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def image_grid(
    x: Any,
    columns: int | None = None,
    *,
    caption: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    width: int = 480,
) -> Any:
    """Figure of images (B, C, H, W) in [-1, 1]; the caption begins with their number."""
    th = theme_of(theme)
    n, side = len(x), max(x.shape[2:])
    columns = columns or int(np.ceil(np.sqrt(n)))
    room = (
        width - 2 * MARGIN + GAP
    ) / columns - GAP  # of one image; a whole number of screen pixels to each of its own
    pixels = grid(x, columns, scale=max(1, int(room / side)), gap=GAP, paper=th.grid)
    height, drawn = pixels.shape[:2]
    c = canvas(backend, th, size=(drawn + 2 * MARGIN, height + MARGIN + 48))
    c.panel().image(pixels)
    c.panel().axes(hide=True)
    return _picture(c.finish(f"n = {n}{'. ' + caption if caption else ''}"), backend)


def filmstrip(
    ds: xr.Dataset,
    samples: Sequence[int] = (0,),
    *,
    n_frames: int = 10,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    width: int = 760,
) -> Any:
    """Some image samples on their way: x_t (scaled to be seen) above, the denoised prediction below.

    Args:
        ds: recorded with `keep=("x0_hat", ...)`.
        samples: positions in the recording.
        n_frames: frames spread evenly over the steps; the last is the end.
    """
    if "x0_hat" not in ds:
        raise BadValue("a filmstrip shows denoised predictions: record(..., keep=('x', 'x0_hat')).")
    if ds.x.ndim != 5:
        raise BadValue(f"a filmstrip shows images (channel, row, col), but samples have dimensions {ds.x.dims[2:]}.")
    if outside := [s for s in samples if not -ds.sizes["sample"] <= s < ds.sizes["sample"]]:
        raise BadValue(
            f"samples {outside} are not in this recording of {ds.sizes['sample']}: positions from 0, not seeds."
        )
    th, n_steps = theme_of(theme), ds.sizes["step"]
    frames = np.unique(np.linspace(0, n_steps, min(n_frames, n_steps + 1)).round().astype(int))
    rows = []
    for s in samples:
        x = ds.x.isel(sample=s).values
        # on every path x_t / sqrt(alpha^2 + sigma_t^2) has about unit size: visible at all noise levels
        spread = ds.alpha.values * np.sqrt(1 + ds.sigma.values**2)
        shown = x / np.where(np.isfinite(spread), spread, 1.0)[:, None, None, None]
        denoised = np.concatenate((ds.x0_hat.isel(sample=s).values, x[-1:] / ds.alpha.values[-1]))
        rows += [shown[frames], denoised[frames]]
    side = max(rows[0].shape[2:])
    scale = max(1, width // (len(frames) * (side + 1)))
    pixels = grid(np.concatenate(rows), len(frames), scale=scale, gap=max(1, scale // 4), paper=th.grid)
    height = round((width - 100) * pixels.shape[0] / pixels.shape[1])
    c = canvas(backend, th, size=(width, height + 84))
    panel = c.panel()
    panel.image(pixels)
    h, w = pixels.shape[:2]
    at = (np.arange(len(frames)) + 0.5) * w / len(frames)
    up = (np.arange(len(rows)) + 0.5) * h / len(rows)
    panel.axes(
        "σ",
        x_ticks=(at, [f"{ds.sigma.values[k]:.2g}" for k in frames]),
        y_ticks=(up, ["x_t", "denoised"] * len(samples)),
    )
    seeds = ", ".join(str(int(ds.seed[s])) for s in samples)
    return _ticked(
        c.finish(f"{len(samples)} of n = {ds.sizes['sample']} samples (seed {seeds}); NFE {ds.attrs['nfe']}"), backend
    )


def _picture(figure: Any, backend: Backend) -> Any:
    if backend == "plotly":
        figure.update_layout(margin={"l": MARGIN, "r": MARGIN, "t": MARGIN, "b": 48})
        figure.layout.annotations[-1].update(yshift=-10)
    return figure


def _ticked(figure: Any, backend: Backend) -> Any:
    """Axes of a picture: words at the frames, no lines."""
    if backend == "plotly":
        figure.update_xaxes(showgrid=False, showline=False, ticks="")
        figure.update_yaxes(showgrid=False, showline=False, ticks="")
    else:
        (ax,) = figure.axes
        ax.axis("on")
        ax.grid(False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return figure
