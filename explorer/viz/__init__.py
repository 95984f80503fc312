"""Datasets to figures, plotly by default and matplotlib on request. Nothing here sees a model or computes for long."""

from explorer.viz.couplings import angle_map, budget, couplings
from explorer.viz.images import data_uri, filmstrip, grid, image_grid, png, to_uint8
from explorer.viz.metrics import history, pareto
from explorer.viz.solvers import measured_order, order_plot, work_precision
from explorer.viz.steps import by_step, schedules
from explorer.viz.theme import DARK, LIGHT, OKABE_ITO, THEMES, Theme, theme_of
from explorer.viz.trajectories import projected, trajectories

__all__ = [
    "DARK", "LIGHT", "OKABE_ITO", "THEMES", "Theme", "angle_map", "budget", "by_step", "couplings", "data_uri", "filmstrip", "grid",
    "history", "image_grid", "measured_order", "order_plot", "pareto", "png", "projected", "schedules", "theme_of", "to_uint8",
    "trajectories", "work_precision",
]  # fmt: skip
