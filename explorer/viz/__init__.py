"""Datasets to figures, plotly by default and matplotlib on request. Nothing here sees a model or computes for long."""

from explorer.viz.adaptive import adaptive_effort
from explorer.viz.bespoke import warps
from explorer.viz.couplings import (
    angle_map,
    budget,
    conflict_map,
    couplings,
    disagreement,
    end_distances,
    microscope,
    rounds,
)
from explorer.viz.errors import attribution, decisions, event_maps, exponents, numbers, scree
from explorer.viz.few_steps import curves, learnt_maps, ranked
from explorer.viz.grids import cost_matrix, grid_steps, step_density
from explorer.viz.guidance import density_maps
from explorer.viz.images import data_uri, filmstrip, grid, image_grid, png, to_uint8
from explorer.viz.landscape import coefficients, landscape
from explorer.viz.layers import layers_left_out
from explorer.viz.likelihood import code_normality, likelihood, round_trip
from explorer.viz.matching import arrows, clouds, repeated
from explorer.viz.metrics import history, pareto
from explorer.viz.restart import forgetting, two_errors
from explorer.viz.solvers import measured_order, order_plot, work_precision
from explorer.viz.steps import by_step, schedules
from explorer.viz.theme import DARK, LIGHT, OKABE_ITO, THEMES, Theme, theme_of
from explorer.viz.trajectories import projected, space, trajectories
from explorer.viz.tuning import search_progress, winners_curse

__all__ = [
    "DARK", "LIGHT", "OKABE_ITO", "THEMES", "Theme", "adaptive_effort", "angle_map", "arrows", "attribution", "budget", "by_step",
    "clouds", "code_normality", "coefficients", "conflict_map", "cost_matrix", "couplings", "curves", "data_uri", "decisions",
    "density_maps", "disagreement", "end_distances", "event_maps", "exponents", "filmstrip", "forgetting", "grid", "grid_steps",
    "history", "image_grid", "landscape", "layers_left_out", "learnt_maps", "likelihood", "measured_order", "microscope",
    "numbers", "order_plot", "pareto", "png", "projected", "ranked", "repeated", "round_trip", "rounds", "schedules", "scree",
    "search_progress", "space", "step_density", "theme_of", "to_uint8", "trajectories", "two_errors", "warps", "winners_curse",
    "work_precision",
]  # fmt: skip
