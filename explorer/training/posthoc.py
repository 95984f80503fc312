"""Power-function averages of any width after the run, from the snapshots of a few.

An average at time t with exponent gamma has the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Snapshots
i with (t_i, gamma_i) span a space of profiles; the coefficients of the wanted one (t, gamma) are those of its orthogonal
projection on it: A x = b, A_ij = <p_i, p_j>, b_i = <p_i, p>. The average is then the same combination of snapshots.
Source: Karras et al. 2023, arXiv 2312.02696, Sec. 3.2 and Appendix C; that the coefficients sum to 1 is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from explorer.errors import BadValue, UnknownName
from explorer.training.ema import power_gamma
from explorer.training.plan import EmaPlan
from explorer.training.weights import Snapshot, filled, snapshots


def profile_products(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Inner products of power-function profiles, broadcast; in units of 1 / time.

    The integral of p_a p_b over [0, min(t_a, t_b)] is (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) times
    (short / long)^gamma_long / long, where gamma_long belongs to the later of the two times.
    """
    late = np.where(t_a >= t_b, gamma_a, gamma_b)
    short, long = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (short / long) ** late / long


def posthoc_coefficients(
    t: Iterable[float], gamma: Iterable[float], at: float, wanted: float, *, to_one: bool = True
) -> tuple[np.ndarray, float]:
    """Coefficients (n,) of stored averages that come nearest the wanted one, and the relative distance that is left.

    Args:
        t, gamma: time and exponent of each stored average.
        at, wanted: time and exponent of the average to reconstruct.
        to_one: let the coefficients sum to 1, so that weights which do not move come out exactly. The paper's projection
            (False) misses by its sum's deviation times the weights themselves, which for weights far larger than their
            motion is most of its error: on a random walk around 100 times its size, 8 snapshots, width 0.15, it
            misses by 1.9 times the average's distance from the last weights, and by 0.004 times that with the constraint.
    """
    t, gamma = np.asarray(t, np.float64), np.asarray(gamma, np.float64)
    gram = profile_products(t[:, None], gamma[:, None], t, gamma)
    right = profile_products(t, gamma, np.float64(at), np.float64(wanted))
    # Profiles of unit norm: what is left of the conditioning is only how alike neighbouring snapshots are.
    norm, target = np.sqrt(np.diag(gram)), np.sqrt(profile_products(at, wanted, at, wanted))
    unit, cosines = gram / norm / norm[:, None], right / norm / target
    system, sides = unit, cosines
    if to_one:  # a Lagrange multiplier
        ones = target / norm
        system = np.block([[unit, ones[:, None]], [ones, np.zeros(1)]])
        sides = np.append(cosines, 1.0)
    y = np.linalg.lstsq(system, sides, rcond=1e-14)[0][: len(t)]
    left = 1 - 2 * y @ cosines + y @ unit @ y
    return y * target / norm, float(np.sqrt(max(left, 0.0)))


def posthoc_ema(
    run_dir: Path | str,
    sigma_rel: float,
    nets: nn.ModuleDict,
    *,
    at: int | None = None,
    emas: Iterable[str] | None = None,
) -> nn.ModuleDict:
    """Networks averaged with a profile of relative width `sigma_rel`, from the snapshots of a run: for `Method.export`.

    Two stored averages (EDM2: 0.05 and 0.10) and a dozen snapshots reconstruct widths from 0.04 to 0.25 to a few per cent of
    the average's distance from the raw weights; `posthoc_coefficients` tells the error of a profile.

    Args:
        nets: the method's networks; their weights are not read. Each has its own coefficients, since networks of one run
            may have been updated at different steps.
        at: step at which the average is wanted; None for the last snapshot.
        emas: names of the stored averages to use; None for all with a power-function profile.
    Raises:
        BadValue: the run has no snapshots of a power-function average, or none early enough.
    """
    EmaPlan(sigma_rel=sigma_rel)
    kept = snapshots(run_dir)
    if not kept:
        raise BadValue(f"{run_dir} has no snapshots; train with Plan.snapshot_steps > 0.")
    last = kept[-1]
    if at is not None and not kept[0].step <= at <= last.step:
        raise BadValue(f"at={at} is outside the snapshots, which go from step {kept[0].step} to {last.step}.")
    kept = [snapshot for snapshot in kept if at is None or snapshot.step <= at]
    powers = {name: width for name, width in last.about["sigma_rel"].items() if width is not None}
    chosen = tuple(powers) if emas is None else tuple(emas)
    for name in chosen:
        if name not in powers:
            raise UnknownName("power-function average", name, powers)
    if not chosen:
        raise BadValue(
            f"the snapshots of {run_dir} hold no power-function average, only {', '.join(last.emas)}; train with "
            "EmaPlan(sigma_rel=0.05) and EmaPlan(sigma_rel=0.10)."
        )
    stored = [(snapshot, name, power_gamma(powers[name])) for snapshot in kept for name in chosen]
    wanted = power_gamma(sigma_rel)
    averaged = {name: {key for key, _ in net.named_parameters()} for name, net in nets.items()}
    return filled(nets, lambda net: _combined(net, averaged[net], stored, wanted, at))


def _combined(
    net: str, averaged: set[str], stored: list[tuple[Snapshot, str, float]], wanted: float, at: int | None
) -> dict[str, Tensor]:
    """State dict of one network; what is not a parameter is taken from the last snapshot."""
    rows = {}
    for snapshot, name, gamma in stored:
        if (time := snapshot.about["averaged"].get(net, 0)) > 0:
            rows.setdefault((time, gamma), (snapshot, name))  # a later snapshot without an update says nothing new
    if not rows:
        raise BadValue(f"network {net!r} was not updated before any of the snapshots.")
    times, gammas = zip(*rows, strict=True)
    # At a snapshot the average is that of this network's last update, which may lie some steps before.
    end = times[-1] if at is None or at == stored[-1][0].step else at
    x, _ = posthoc_coefficients(times, gammas, end, wanted)
    total: dict[str, Tensor] = {}
    for (snapshot, name), weight in zip(rows.values(), x, strict=True):
        state = snapshot.state(net, name)
        for key, value in state.items():
            total[key] = total.get(key, 0) + float(weight) * value.double() if key in averaged else value
    return {key: value.to(state[key].dtype) for key, value in total.items()}
