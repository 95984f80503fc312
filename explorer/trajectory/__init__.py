"""What a sampler did: recorded runs as labelled data, their geometry, couplings and errors."""

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
    mean_and_error,
    moved,
    nfss,
    noise_of,
    path_of,
    step_length,
    straightness,
    trajectory,
    turning_angle,
    validate,
)
from explorer.trajectory.field import point_density, velocity_field
from explorer.trajectory.local_error import flow_curvature, local_error
from explorer.trajectory.record import Recorder, bytes_needed, record
from explorer.trajectory.running import RunningGeometry
from explorer.trajectory.storage import load, save

__all__ = [
    "Recorder", "RunningGeometry", "angle_proxy", "arc_chord", "budget", "bytes_needed", "conflict", "coupling_cost", "crossings",
    "curvature", "data_of", "end_distance", "endpoints", "flow_curvature", "intersection", "load", "local_error", "mean_and_error",
    "moved", "nfss", "noise_of", "normalised_path_energy", "optimal_cost", "path_of", "point_density", "record", "save", "step_length",
    "straightness", "trajectory", "turning_angle", "validate", "velocity_field",
]  # fmt: skip
