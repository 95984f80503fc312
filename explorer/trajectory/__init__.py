"""What a sampler did: recorded runs as labelled data, their geometry, couplings and errors."""

from explorer.trajectory.attribution import attribution, attribution_cost
from explorer.trajectory.contraction import contraction, lyapunov, strain_rates, total_exponents, velocity_jacobian
from explorer.trajectory.coupling import (
    budget,
    end_distance,
    endpoints,
    intersection,
    normalised_path_energy,
    optimal_cost,
)
from explorer.trajectory.dataset import (
    angle_proxy,
    arc_chord,
    conflict,
    coupling_cost,
    crossings,
    curvature,
    data_of,
    denoised,
    mean_and_error,
    moved,
    nfss,
    noise_of,
    path_of,
    pieces,
    sampling_discrepancy,
    step_length,
    straightness,
    trajectory,
    turning_angle,
    validate,
)
from explorer.trajectory.events import decisions, nearest, pixel_events
from explorer.trajectory.field import point_density, velocity_field
from explorer.trajectory.local_error import flow_curvature, local_error
from explorer.trajectory.maps import compare_maps, disagreement, lasso, map_verdict, microscope
from explorer.trajectory.record import Recorder, bytes_needed, record
from explorer.trajectory.running import RunningBudget, RunningGeometry
from explorer.trajectory.storage import load, save
from explorer.trajectory.subspace import deviation, effective_dimension, principal_basis, project, torsion_of

__all__ = [
    "Recorder", "RunningBudget", "RunningGeometry", "angle_proxy", "arc_chord", "attribution", "attribution_cost", "budget",
    "bytes_needed", "compare_maps", "conflict", "contraction", "coupling_cost", "crossings", "curvature", "data_of", "decisions",
    "denoised", "deviation", "disagreement", "effective_dimension", "end_distance", "endpoints", "flow_curvature", "intersection",
    "lasso", "load", "local_error", "lyapunov", "map_verdict", "mean_and_error", "microscope", "moved", "nearest", "nfss", "noise_of",
    "normalised_path_energy", "optimal_cost", "path_of", "pieces", "pixel_events", "point_density", "principal_basis", "project",
    "record", "sampling_discrepancy", "save", "step_length", "straightness", "strain_rates", "torsion_of", "total_exponents",
    "trajectory", "turning_angle", "validate", "velocity_field", "velocity_jacobian",
]  # fmt: skip
