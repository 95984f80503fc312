"""What a sampler did: recorded runs as labelled data, their geometry, couplings and errors."""

from explorer.trajectory.adaptive import adaptive_attempts, adaptive_effort
from explorer.trajectory.attribution import attribution, attribution_cost
from explorer.trajectory.contraction import contraction, lyapunov, strain_rates, total_exponents, velocity_jacobian
from explorer.trajectory.coupling import (
    budget,
    conflict_map,
    end_distance,
    endpoints,
    intersection,
    normalised_path_energy,
    optimal_cost,
    pair_flow,
    pairs_dataset,
    reflow,
    reflow_pairs,
    run_from,
)
from explorer.trajectory.dataset import (
    data_of,
    denoised,
    mean_and_error,
    merged,
    moved,
    noise_of,
    path_of,
    pieces,
    trajectory,
    validate,
)
from explorer.trajectory.events import decisions, nearest, pixel_events
from explorer.trajectory.field import point_density, velocity_field
from explorer.trajectory.inversion import (
    decode,
    encode,
    forward_pairs,
    inverter,
    normality,
    normality_verdict,
    round_trip,
    round_trip_by_steps,
)
from explorer.trajectory.likelihood import dequantise, likelihood_by_steps, log_likelihood, tightened
from explorer.trajectory.local_error import flow_curvature, local_error
from explorer.trajectory.maps import compare_maps, disagreement, lasso, map_verdict, microscope
from explorer.trajectory.measures import (
    angle_proxy,
    arc_chord,
    conflict,
    coupling_cost,
    crossings,
    curvature,
    nfss,
    sampling_discrepancy,
    step_length,
    straightness,
    turning_angle,
)
from explorer.trajectory.record import Recorder, bytes_needed, record
from explorer.trajectory.running import RunningBudget, RunningGeometry
from explorer.trajectory.schedules import Schedule, Search, ays, end_errors, end_verdicts, equidistribute, gits
from explorer.trajectory.storage import load, save
from explorer.trajectory.subspace import deviation, effective_dimension, principal_basis, project, torsion_of

__all__ = [
    "Recorder", "RunningBudget", "RunningGeometry", "Schedule", "Search", "adaptive_attempts", "adaptive_effort", "angle_proxy",
    "arc_chord", "attribution", "attribution_cost", "ays", "budget", "bytes_needed", "compare_maps", "conflict", "conflict_map",
    "contraction", "coupling_cost", "crossings", "curvature", "data_of", "decisions", "decode", "denoised", "dequantise", "deviation",
    "disagreement", "effective_dimension", "encode", "end_distance", "end_errors", "end_verdicts", "endpoints", "equidistribute",
    "flow_curvature", "forward_pairs", "gits", "intersection", "inverter", "lasso", "likelihood_by_steps", "load", "local_error",
    "log_likelihood", "lyapunov", "map_verdict", "mean_and_error", "merged", "microscope", "moved", "nearest", "nfss", "noise_of",
    "normalised_path_energy", "normality", "normality_verdict", "optimal_cost", "pair_flow", "pairs_dataset", "path_of", "pieces",
    "pixel_events", "point_density", "principal_basis", "project", "record", "reflow", "reflow_pairs", "round_trip",
    "round_trip_by_steps", "run_from", "sampling_discrepancy", "save", "step_length", "straightness", "strain_rates", "tightened",
    "torsion_of", "total_exponents", "trajectory", "turning_angle", "validate", "velocity_field", "velocity_jacobian",
]  # fmt: skip
