"""solver-overhead-*: what a solver costs besides the network, per evaluation.

The network is the smallest anybody would sample from (3-64-64-2, batch 256), so that everything else shows: its bare call is
seven tensor operations. All keep their state in float32, start from the same noise and are divided by their own number of
evaluations. Set-up that a run needs (time grid, scheduler.set_timesteps) counts, for everybody. The rows ending in -float64
show what our default costs: a state in float64 is cast on the way into the network and out of it. Where a step is simple enough to be
written by hand, `floor` is that: the network and the tensor operations that the step cannot do without, their numbers ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from explorer.bench import peers as theirs
from explorer.bench.clock import Effort, Work, clock_of, installed, rounds, threads, waiter
from explorer.bench.rows import Row
from explorer.models.base import Preconditioned
from explorer.models.bundled import load
from explorer.process.paths import EDM, Linear
from explorer.process.precondition import EDMPrecondition, FlowPrecondition
from explorer.sampling.grids import TimeGrid
from explorer.sampling.samplers import OdeSampler
from explorer.sampling.seeds import Seeds
from explorer.sampling.solve import Solver
from explorer.sampling.solvers import RK4, SOLVERS, DPMpp2M, Euler, Heun
from explorer.trajectory.record import Recorder

BATCH, STEPS, SIGMA = 256, 18, (0.002, 80.0)
RECORDED = 4  # batches that one recorder takes
SLACK, SLACK_RECORDING = 1.15, 1.3


class TinyNet(nn.Module):
    """3-64-64-2 with SiLU; the third input is the noise level."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        widths = (3, 64, 64, 2)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        first, second, last = self.layers
        h = torch.cat([x, noise.reshape(-1, 1).expand(len(x), 1)], dim=1)
        h = nn.functional.silu(first(h))
        return last(nn.functional.silu(second(h)))


class Setting:
    """The network, the noise and the two kinds of model made of it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.net = TinyNet().to(device)
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(BATCH, 2, dtype=torch.float64, generator=generator).to(device)
        self.noise32 = self.noise.float()
        self.level = torch.full((1,), 0.5, device=device)
        times = SIGMA[0] / (1 + SIGMA[0]), SIGMA[1] / (1 + SIGMA[1])
        self.flow = Preconditioned(self.net, Linear(), FlowPrecondition(), shape=(2,), t_range=times, name="flow")
        self.edm = Preconditioned(self.net, EDM(), EDMPrecondition(), shape=(2,), t_range=SIGMA, name="edm")

    def bare(self) -> None:
        for _ in range(STEPS):
            self.net(self.noise32, self.level)

    def by_hand(self, kind: str) -> Work:
        """Euler's method on either model with the least tensor operations: `floor`."""
        model, grid = (self.flow, FLOW_GRID) if kind == "flow" else (self.edm, EDM_GRID)
        times, steps = grid.on(model.path), []
        for t, t_next in pairwise(times):
            c_skip, c_out, c_in, c_noise = model.precondition.at(t, model.path)
            a, b = model.path.convert(model.precondition.kind, "velocity", t)
            h = t_next - t
            slope = 1 + h * (a + b * c_skip), h * b * c_out  # x_next = this x + that F(c_in x)
            level = torch.tensor([c_noise], device=self.device)
            steps.append((torch.tensor(c_in), level, torch.tensor(slope[0]), slope[1]))
        start = self.noise32 * model.path.at(times[0])[1]

        def run() -> Tensor:
            x = start
            for c_in, level, a, b in steps:
                x = (
                    torch.add(x, self.net(x, level), alpha=b)
                    if kind == "flow"
                    else torch.add(x * a, self.net(x * c_in, level), alpha=b)
                )
            return x

        return run


Peer = Callable[[Setting], tuple[Work, int]]
"""From a Setting: the work of one run, and its number of evaluations."""

FLOW_GRID = TimeGrid.uniform_t(STEPS, *SIGMA, Linear())
EDM_GRID = TimeGrid.karras(STEPS, *SIGMA)


def euler(name: str, effort: Effort, device: torch.device) -> Row:
    peers = {"torchdiffeq euler": torchdiffeq("euler"), "diffusers FlowMatchEuler": flow_match("Euler")}
    return _row(name, Euler(), "flow", peers, effort, device)


def euler_float64(name: str, effort: Effort, device: torch.device) -> Row:
    peers = {"torchdiffeq euler": torchdiffeq("euler", torch.float64)}
    return _row(name, Euler(), "flow", peers, effort, device, torch.float64)


def heun(name: str, effort: Effort, device: torch.device) -> Row:
    peers = {"torchdiffeq heun2": torchdiffeq("heun2"), "diffusers FlowMatchHeun": flow_match("Heun")}
    return _row(name, Heun(), "flow", peers, effort, device)


def rk4(name: str, effort: Effort, device: torch.device) -> Row:
    return _row(name, RK4(), "flow", {"torchdiffeq rk4": torchdiffeq("rk4")}, effort, device)


def euler_edm(name: str, effort: Effort, device: torch.device) -> Row:
    peers = {"diffusers EDMEuler": edm_scheduler("EDMEulerScheduler"), "k-diffusion euler": k_diffusion("euler")}
    return _row(name, Euler(), "edm", peers, effort, device)


def heun_edm(name: str, effort: Effort, device: torch.device) -> Row:
    peers = {
        "diffusers HeunDiscrete": heun_discrete,
        "k-diffusion heun": k_diffusion("heun", 2),
        "NVlabs/edm edm_sampler": edm_sampler,
    }
    return _row(name, Heun(), "edm", peers, effort, device)


def dpmpp_2m(name: str, effort: Effort, device: torch.device) -> Row:
    options = {"solver_order": 2, "final_sigmas_type": "zero", "lower_order_final": False, "euler_at_final": True}
    peers = {
        "diffusers EDMDPMSolverMultistep": edm_scheduler("EDMDPMSolverMultistepScheduler", **options),
        "k-diffusion dpmpp_2m": k_diffusion("dpmpp_2m"),
    }
    return _row(name, DPMpp2M(), "edm", peers, effort, device)


def dpmpp_2m_float64(name: str, effort: Effort, device: torch.device) -> Row:
    return _row(name, DPMpp2M(), "edm", {}, effort, device, torch.float64)


def recording(name: str, effort: Effort, device: torch.device) -> Row:
    """Euler with every state and slope written down; the recorder's buffers are made within the time measured."""
    with torch.inference_mode(), threads(1):
        s = Setting(device)
        sampler, path = OdeSampler(Euler(), FLOW_GRID), s.flow.path

        def ours() -> None:
            recorder = Recorder(RECORDED * BATCH, STEPS, path, ("x", "slope"), dtype=torch.float32, model=s.flow)
            for _ in range(RECORDED):
                sampler.sample(s.flow, s.noise32, observe=recorder)

        nfe = {"ours": RECORDED * STEPS, "limit": STEPS}
        note = f"Euler on a velocity network; {RECORDED} batches into one Recorder with x and slope. {NOTE}"
        return _measured(name, {"ours": ours, "limit": s.bare}, nfe, effort, device, SLACK_RECORDING, note)


def any_solver(name: str, effort: Effort, device: torch.device, *, solver: str) -> Row:
    """A row for each solver that has none of its own, on the EDM-preconditioned network."""
    return _row(name, SOLVERS[solver](), "edm", PEERS.get(solver, {}), effort, device)


def unet(name: str, effort: Effort, device: torch.device, *, solver: str) -> Row:
    """The bundled digits network, whose size hides what a solver does besides."""
    with torch.inference_mode(), threads(1):
        model = load("digits").to(device)
        seeds = Seeds(range(UNET_BATCH))
        sampler = OdeSampler(SOLVERS[solver](), TimeGrid.karras(UNET_STEPS, *SIGMA))
        noise, cond = seeds.normal(model.shape, device=device, dtype=torch.float32), seeds.labels(10, device)
        level = torch.zeros(1, device=device)

        def bare() -> None:
            for _ in range(UNET_STEPS):
                model.net(noise, level, cond)

        work = {"ours": lambda: sampler.sample(model, noise, cond, rng=seeds.fresh()), "limit": bare}
        nfe = {"ours": sampler.nfe(model), "limit": UNET_STEPS}
        note = f"{solver} on the bundled digits U-Net, batch {UNET_BATCH}, {UNET_STEPS} steps; CPU time of one thread."
        return _measured(name, work, nfe, effort, device, SLACK, note, best_of=1)


UNET_BATCH, UNET_STEPS = 64, 6
NOTE = f"MLP 3-64-64-2, batch {BATCH}, {STEPS} steps; microseconds per evaluation, CPU time of one thread."


def _row(
    name: str,
    solver: Solver,
    kind: str,
    peers: Mapping[str, Peer],
    effort: Effort,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Row:
    with torch.inference_mode(), threads(1):
        s = Setting(device)
        model, grid = (s.flow, FLOW_GRID) if kind == "flow" else (s.edm, EDM_GRID)
        sampler, noise = OdeSampler(solver, grid), s.noise.to(dtype)
        found, absent = installed({peer: lambda build=build: build(s) for peer, build in peers.items()})
        seeds = Seeds(range(BATCH)) if solver.stochastic else None
        work = {"ours": lambda: sampler.sample(model, noise, rng=seeds), "limit": s.bare}
        work |= {p: f for p, (f, _) in found.items()}
        if type(solver) is Euler and dtype == torch.float32:
            work["floor"] = s.by_hand(kind)
        nfe = {"ours": sampler.nfe(model), "limit": STEPS, "floor": STEPS} | {p: n for p, (_, n) in found.items()}
        what = "velocity network (linear path)" if kind == "flow" else "EDM-preconditioned network"
        if solver.stochastic:
            what += ", noise from each sample's own generator (the peers draw a batch at once)"
        note = f"{type(solver).__name__} on a {what}, state in {str(dtype).removeprefix('torch.')}. {NOTE}"
        target = SLACK if dtype == torch.float32 and not solver.stochastic else None
        return _measured(name, work, nfe, effort, device, target, note, absent)


def _measured(
    name, work: dict[str, Work], nfe, effort: Effort, device, target, note, absent=(), best_of: int = 15
) -> Row:
    best_of = min(best_of, 3) if effort.quick else best_of
    times, ends = rounds(work, effort, best_of=best_of, clock=clock_of(device), wait=waiter(device))
    times = {key: [seconds / nfe[key] for seconds in values] for key, values in times.items()}
    same = {peer: end for peer, end in ends.items() if peer in EQUAL and peer in times}
    checks = {peer: float((end - ends["ours"]).norm() / ends["ours"].norm()) for peer, end in same.items()}
    limit_is = "the bare network call"
    return Row.of(name, times, unit="us", limit_is=limit_is, target=target, absent=absent, checks=checks, note=note)


EQUAL = {
    "floor", "torchdiffeq euler", "diffusers EDMEuler", "diffusers EDMDPMSolverMultistep", "NVlabs/edm edm_sampler",
    "k-diffusion euler", "k-diffusion heun", "k-diffusion dpmpp_2m", "k-diffusion dpmpp_2s", "k-diffusion dpm_2",
}  # fmt: skip
"""Those that take the same steps, and so must end at the same points, to the rounding of float32."""


def torchdiffeq(method: str, dtype: torch.dtype = torch.float32) -> Peer:
    def build(s: Setting) -> tuple[Work, int]:
        from torchdiffeq import odeint

        times = FLOW_GRID.tensor(Linear(), s.device).to(dtype)
        start = s.noise.to(dtype) * times[0]
        evaluations = {"euler": 1, "heun2": 2, "rk4": 4}[method] * STEPS

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return s.net(x, t)

        def velocity64(t: Tensor, x: Tensor) -> Tensor:
            return s.net(x.float(), t.float()).double()

        f = velocity if dtype == torch.float32 else velocity64
        return lambda: odeint(f, start, times, method=method)[-1], evaluations

    return build


def flow_match(order: str) -> Peer:
    def build(s: Setting) -> tuple[Work, int]:
        import diffusers

        scheduler = getattr(diffusers, f"FlowMatch{order}DiscreteScheduler")()
        return _loop(s, scheduler, s.noise32, lambda t: t / 1000)

    return build


def edm_scheduler(name: str, **options) -> Peer:
    def build(s: Setting) -> tuple[Work, int]:
        import diffusers

        scheduler = getattr(diffusers, name)(sigma_min=SIGMA[0], sigma_max=SIGMA[1], **options)
        return _loop(s, scheduler, s.noise32 * SIGMA[1], lambda t: t)

    return build


def karras_scheduler(name: str, **options) -> Peer:
    def build(s: Setting) -> tuple[Work, int]:
        import diffusers

        scheduler = getattr(diffusers, name)(use_karras_sigmas=True, **options)
        scheduler.set_timesteps(STEPS)
        return _loop(s, scheduler, s.noise32 * float(scheduler.init_noise_sigma), lambda t: t / 1000)

    return build


def heun_discrete(s: Setting) -> tuple[Work, int]:
    import diffusers

    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    return _loop(s, scheduler, s.noise32 * float(scheduler.init_noise_sigma), lambda t: t / 1000)


class Denoised(nn.Module):
    """The network under EDM's preconditioning, of sigma () or (B,), as NVlabs/edm and k-diffusion want to be given it."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self, net: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        x, sigma = x.float(), sigma.float().reshape(-1, 1)
        total = sigma**2 + self.sigma_data**2
        raw = self.net(x / total.sqrt(), sigma.flatten().log() / 4)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * raw

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


def edm_sampler(s: Setting) -> tuple[Work, int]:
    """Algorithm 1 of Karras et al. by its authors; its state is float64."""
    sampler, model = theirs.edm("generate").edm_sampler, Denoised(s.net)
    return lambda: sampler(model, s.noise32, num_steps=STEPS, sigma_min=SIGMA[0], sigma_max=SIGMA[1]), 2 * STEPS - 1


def k_diffusion(name: str, evaluations: int = 1, **options) -> Peer:
    """`sample_<name>` with one or two evaluations a step, one in the last. Noise is drawn a batch at once."""

    def build(s: Setting) -> tuple[Work, int]:
        sampling, model = theirs.k_diffusion(), Denoised(s.net)
        sampler, start = getattr(sampling, f"sample_{name}"), s.noise32 * SIGMA[1]
        if "sde" in name:
            options["noise_sampler"] = lambda *_: torch.randn_like(start)

        def run() -> Tensor:
            sigmas = sampling.get_sigmas_karras(STEPS, *SIGMA, device=s.device)
            return sampler(model, start, sigmas, disable=True, **options)

        return run, evaluations * STEPS - (evaluations - 1)

    return build


def _loop(s: Setting, scheduler, start: Tensor, level: Callable[[Tensor], Tensor]) -> tuple[Work, int]:
    """The loop of a diffusers pipeline: scale the input, ask the network, step."""
    scheduler.set_timesteps(STEPS, device=s.device)
    scales = hasattr(scheduler, "scale_model_input")

    def run() -> Tensor:
        scheduler.set_timesteps(STEPS, device=s.device)
        x = start
        for t in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, t) if scales else x
            x = scheduler.step(s.net(x_in, level(t).reshape(1).float()), t, x).prev_sample
        return x

    return run, len(scheduler.timesteps)


_EDM_DPM, _EDM_SDE = "EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
_SINGLE, _DPM = "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler"
PEERS: dict[str, dict[str, Peer]] = {
    "dpm-solver-2": {
        "diffusers KDPM2": karras_scheduler("KDPM2DiscreteScheduler"),
        "k-diffusion dpm_2": k_diffusion("dpm_2", 2),
    },
    "dpmpp-2s": {
        "diffusers DPMSolverSinglestep 2": karras_scheduler(_SINGLE, solver_order=2),
        "k-diffusion dpmpp_2s": k_diffusion("dpmpp_2s_ancestral", 2, eta=0.0),
    },
    "dpmpp-3m": {"diffusers EDMDPMSolverMultistep 3": edm_scheduler(_EDM_DPM, solver_order=3)},
    "dpmpp-sde": {"k-diffusion dpmpp_sde": k_diffusion("dpmpp_sde", 2)},
    "dpmpp-2m-sde": {
        "diffusers EDMDPMSolverMultistep sde 2": edm_scheduler(_EDM_DPM, **_EDM_SDE),
        "k-diffusion dpmpp_2m_sde": k_diffusion("dpmpp_2m_sde"),
    },
    "dpmpp-3m-sde": {
        "diffusers DPMSolverMultistep sde 3": karras_scheduler(_DPM, **_EDM_SDE, solver_order=3),
        "k-diffusion dpmpp_3m_sde": k_diffusion("dpmpp_3m_sde"),
    },
    "unipc": {"diffusers UniPCMultistep": karras_scheduler("UniPCMultistepScheduler")},
    "deis": {"diffusers DEISMultistep": karras_scheduler("DEISMultistepScheduler")},
}
"""Samplers that do the same work a step as one of our solvers; the time grids and orders at the ends of diffusers' differ."""
