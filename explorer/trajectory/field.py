"""What lies around the paths in the plane: velocity and density on a regular grid."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser
from explorer.process.paths import Path
from explorer.sampling.samplers import device_of

Extent = tuple[float, float, float, float]


@torch.inference_mode()
def velocity_field(
    model: Denoiser, t: float, extent: Extent, *, n: int = 21, path: Path | None = None, cond: Cond = None
) -> xr.Dataset:
    """dx/dt of a two-dimensional model on an n x n grid: `u`, `v` over (row, col), coordinates `px`, `py`.

    Args:
        t: time of `path` (by default the model's own); sigma must be positive there.
        extent: (left, right, bottom, top) in the coordinates of that path.
        cond: one class label (1,) for the whole field, or None.
    """
    if tuple(model.shape) != (2,):
        raise BadValue(
            f"a velocity field is drawn in the plane; {model.name or 'this model'} has samples of shape {model.shape}."
        )
    model = model.on(path or model.path)
    px, py = np.linspace(extent[0], extent[1], n), np.linspace(extent[2], extent[3], n)
    points = torch.as_tensor(np.stack(np.meshgrid(px, py), axis=-1).reshape(-1, 2), device=device_of(model))
    labels = None if cond is None else cond.expand(len(points))
    v = model.velocity(points, t, labels).cpu().double().numpy().reshape(n, n, 2)
    return xr.Dataset(
        {"u": (("row", "col"), v[..., 0]), "v": (("row", "col"), v[..., 1])},
        coords={"px": ("col", px), "py": ("row", py)},
        attrs={"t": t, "sigma": model.path.ratio_at(t)},
    )


def point_density(points: Tensor | np.ndarray, extent: Extent, *, n: int = 80, smooth: float = 2.0) -> xr.Dataset:
    """Density of points (S, 2) by a histogram of n x n cells blurred by `smooth` cells: `density` (row, col).

    Per unit area; integrates to the share of points inside the extent.
    """
    from scipy.ndimage import gaussian_filter

    points = np.asarray(points, dtype=np.float64)
    left, right, bottom, top = extent
    counts, ey, ex = np.histogram2d(points[:, 1], points[:, 0], bins=n, range=((bottom, top), (left, right)))
    cell = (right - left) * (top - bottom) / n**2
    return xr.Dataset(
        {"density": (("row", "col"), gaussian_filter(counts, smooth, mode="constant") / len(points) / cell)},
        coords={"px": ("col", (ex[:-1] + ex[1:]) / 2), "py": ("row", (ey[:-1] + ey[1:]) / 2)},
        attrs={"n": len(points)},
    )
