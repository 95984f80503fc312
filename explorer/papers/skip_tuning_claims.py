"""Claims of skip-tuning, measured on the bundled digits networks; nothing is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from explorer.data import load_dataset
from explorer.metrics.base import Estimate
from explorer.metrics.features import feature_space
from explorer.models import bundled
from explorer.models.wrappers import SkipTuned, skip_schedule
from explorer.nets.edm_unet import CIFAR10_DDPMPP, IMAGENET64_ADM, EDMUNet
from explorer.papers.skip_tuning import block_change, network_of, norm_ratios, paired, score_losses, skip_blocks
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling import Heun, OdeSampler, Seeds, TimeGrid
from explorer.tuning import MetricObjective, Setting, Skips

SIGMAS = (0.1, 0.5, 2.0)
BOTTOM = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SWEEP = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1)


def digits(bench: Bench, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """n data, their labels and noise, other ones at each seed."""
    data, g = load_dataset("digits"), bench.generator()
    rows = torch.randperm(len(data), generator=g)[:n]
    return data.x[rows], data.labels[rows], torch.randn(n, *data.shape, generator=g, dtype=torch.float64)


def banks(n_skips: int, bottoms=BOTTOM) -> list[list[float]]:
    return [skip_schedule(n_skips, bottom, 1.0) for bottom in bottoms]


def identity(bench: Bench) -> Verdict:
    model = bundled.load("digits")
    x0, labels, eps = digits(bench, 64)
    worst = 0.0
    for sigma in SIGMAS:
        x, t = x0 + sigma * eps, model.path.time_at(sigma)
        ones = SkipTuned(model, [1.0] * model.n_skips).denoise(x, t, labels)
        worst = max(worst, float((ones - model.denoise(x, t, labels)).abs().max()))
    SkipTuned(model, banks(model.n_skips)[0]).denoise(x, t, labels)
    again = float((model.denoise(x, t, labels) - ones).abs().max())
    measured = Estimate(max(worst, again), 0.0, 64, "largest difference with all factors 1, and after a tuned call")
    return Verdict(measured.value == 0, measured, 0.0, "three noise levels")


def alignment(bench: Bench) -> Verdict:
    with torch.device("meta"):
        nets = {"CIFAR-10": EDMUNet(**CIFAR10_DDPMPP), "ImageNet-64": EDMUNet(**IMAGENET64_ADM)}
    found = {name: skip_blocks(net) for name, net in nets.items()}
    mixed = {name: [b.name for b in blocks if not b.aligned] for name, blocks in found.items()}
    shortcuts = all(b.shortcut for blocks in found.values() for b in blocks)
    said = "; ".join(
        f"{name}: {len(mixed[name])} of {len(found[name])} mixed ({', '.join(mixed[name])})" for name in found
    )
    counts = [len(m) for m in mixed.values()]
    holds = counts == [1, 6] and [len(b) for b in found.values()] == [15, 16] and shortcuts
    return Verdict(holds, Estimate(float(sum(counts)), 0.0, 31, "blocks whose groups mix u and d"), 7.0, said)


def only_the_shortcut(bench: Bench) -> Verdict:
    """Random blocks of EDM's form: 256 + 256 channels in 32 groups (aligned), and 256 + 128, whose groups of 12 mix."""
    g = bench.generator()
    net = EDMUNet(**{**CIFAR10_DDPMPP, "mult": [2], "shape": [3, 8, 8], "attention": [], "dropout": 0.0, "blocks": 1})
    parts = skip_blocks(net.eval())
    for parameter in net.parameters():  # the last convolutions start at zero
        parameter.data.copy_(torch.randn(parameter.shape, generator=g) / max(parameter[0].numel(), 1) ** 0.5)
    emb = torch.randn(4, net.config["n_emb"], generator=g)
    found = {}
    for part in parts:
        h = torch.randn(4, part.n_main + part.n_skip, 8, 8, generator=g)
        found["aligned" if part.aligned else "mixed"] = [
            block_change(part, h, emb, 0.5, shortcut=s) for s in (False, True)
        ]
    (alone, passed), (mixed, _) = found["aligned"], found["mixed"]
    measured = Estimate(alone, 0.0, 4, "relative change of an aligned block's output without its shortcut, factor 0.5")
    text = f"{passed:.2f} with the shortcut; {mixed:.2f} without it where groups mix"
    return Verdict(alone < 1e-4 < mixed < passed and passed > 0.05, measured, 1e-4, text)


def live(bench: Bench) -> Verdict:
    model = bundled.load("digits")
    x0, labels, eps = digits(bench, 256)
    moved = {}
    for sigma in (0.01, *SIGMAS, 20.0):
        x, t = x0 + sigma * eps, model.path.time_at(sigma)
        plain = model.denoise(x, t, labels)
        moved[sigma] = [
            float((SkipTuned(model, b).denoise(x, t, labels) - plain).square().mean().sqrt())
            for b in banks(model.n_skips)
        ]
    rising = all(a > b for sigma in SIGMAS for a, b in zip(moved[sigma][:-1], moved[sigma][1:], strict=True))
    largest = max(moved, key=lambda s: moved[s][0])
    text = ", ".join(f"{v[0]:.3f} at {s:g}" for s, v in moved.items()) + f"; monotone in the factor: {rising}"
    measured = Estimate(
        moved[largest][0], 0.0, 256, "RMS change of the denoised image at rho_bottom = 0.5, largest over sigma"
    )
    return Verdict(rising and largest in SIGMAS, measured, max(moved[0.01][0], moved[20.0][0]), text)


def pixel_loss(bench: Bench) -> Verdict:
    """On the data it was trained for: the factor of least loss in the sweep, and by how much it is below that of 1."""
    model = bundled.load("digits")
    x0, labels, eps = digits(bench, 512)
    best, gaps = {}, {}
    for sigma in SIGMAS:
        losses = score_losses(model, banks(model.n_skips, SWEEP), x0, eps, sigma, cond=labels)
        k = int(losses.mean(dim=1).argmin())
        best[sigma], gaps[sigma] = SWEEP[k], paired(losses[k] - losses[SWEEP.index(1.0)], "pixel loss")
    worst = max(SIGMAS, key=lambda s: abs(best[s] - 1))
    text = ", ".join(
        f"rho_bottom {best[s]:g} at sigma {s:g} ({gaps[s].value:.1e} ± {gaps[s].std_error:.0e} from 1)" for s in SIGMAS
    )
    measured = Estimate(
        abs(best[worst] - 1), 0.0, 512, "distance from 1 of the factor with the least pixel loss, worst sigma"
    )
    return Verdict(measured.value <= 0.05 + 1e-9, measured, 0.05, text)


def feature_loss(bench: Bench) -> Verdict:
    model, space = bundled.load("digits"), feature_space("digits-cnn", (1, 8, 8))
    x0, labels, eps = digits(bench, 512)
    falls = {}
    for sigma in SIGMAS:
        losses = score_losses(model, banks(model.n_skips, SWEEP), x0, eps, sigma, space, cond=labels)
        one = losses[SWEEP.index(1.0)]
        below = [
            paired((losses[i] - one) / one.mean(), "relative feature loss") for i, rho in enumerate(SWEEP) if rho < 1
        ]
        falls[sigma] = min(below, key=lambda e: e.value)
    best = min(SIGMAS, key=lambda s: falls[s].value)
    e = falls[best]
    text = ", ".join(f"{100 * v.value:+.1f} ± {100 * v.std_error:.1f} % at sigma {s:g}" for s, v in falls.items())
    measured = Estimate(
        e.value, e.std_error, e.n, "relative change of the feature loss, best factor below 1, best sigma"
    )
    return Verdict(e.value < -2 * e.std_error, measured, 0.0, text)


def gain(bench: Bench, n_steps: int, n: int = 700) -> tuple[float, Estimate]:
    """The factor chosen on one set of noise, and what it gains on another: paired difference of FD from factor 1."""
    from explorer.live import metric_for

    model = bundled.load("digits")
    low, high = model.sigma_range
    sampler = OdeSampler(Heun(), TimeGrid.karras(n_steps, low, high))
    first = 3_000_000 * (bench.seed + 1)
    search = MetricObjective(metric_for(model, "fd"), range(first, first + n // 2))
    held = search.on(range(first + 1_000_000, first + 1_000_000 + n))

    def at(rho: float) -> Setting:
        return Setting(sampler, (Skips(tuple(skip_schedule(model.n_skips, rho, 1.0))),))

    best = min((0.8, 0.9, 1.0, 1.1), key=lambda rho: search(*at(rho).on(model)).value)
    after, before = (held.measure(*at(rho).on(model)) for rho in (best, 1.0))
    return best, after.minus(before)


def fewer_steps(bench: Bench) -> Verdict:
    rho, few = gain(bench, 4)
    other, many = gain(bench, 8)
    text = f"rho_bottom {rho:g} at 7 NFE; {other:g} at 15 NFE changes FD by {many.value:.2f} ± {many.std_error:.2f}"
    measured = Estimate(
        few.value, few.std_error, few.n, "change of FD[digits-cnn] at 7 NFE by the chosen factor, held out"
    )
    holds = (
        few.value <= 2 * few.std_error and -many.value <= -few.value + 2 * (many.std_error**2 + few.std_error**2) ** 0.5
    )
    return Verdict(holds, measured, 2 * few.std_error, text)


def student_ratio(bench: Bench) -> Verdict:
    """As they sample: the student's one call from pure noise beside the mean over the teacher's 35. In the text also at equal noise."""
    teacher, seeds = bundled.load("digits"), Seeds(range(1000 * bench.seed, 1000 * bench.seed + 128))
    noise, labels = seeds.normal((1, 8, 8)), seeds.labels(10)
    grid = TimeGrid.karras(18, *teacher.sigma_range)
    sampling = norm_ratios(teacher, lambda: OdeSampler(Heun(), grid).sample(teacher, noise, labels))[:, 0].log()
    x0, given, eps = digits(bench, 128)
    found, equal = {}, {}
    for name in ("digits-cd", "digits-ict", "digits-scd"):
        student = bundled.load(name)
        t_max = student.t_range[1]
        start = student.path.at(t_max)[1] * noise
        once = norm_ratios(student, lambda m=student, x=start, t=t_max: m.denoise(x, t, labels))[:, 0].log()
        found[name] = paired(once - sampling, "ln norm ratio")
        logs = []
        for model in (student, teacher):
            t = model.path.time(torch.tensor([2.0], dtype=torch.float64)).expand(len(x0))
            x = model.path.perturb(x0.double(), eps, t)
            logs.append(norm_ratios(model, lambda m=model, x=x, t=float(t[0]): m.denoise(x, t, given))[:, 0].log())
        equal[name] = float((logs[0] - logs[1]).mean())
    e = found["digits-cd"]
    text = "; ".join(f"{k} {v.value:+.3f} ± {v.std_error:.3f}, at sigma 2 {equal[k]:+.3f}" for k, v in found.items())
    measured = Estimate(
        e.value, e.std_error, e.n, "ln prop of the distilled student in one call minus the teacher's mean, deepest skip"
    )
    return Verdict(e.value < -2 * e.std_error, measured, 0.0, text)


def depth(bench: Bench) -> Verdict:
    model = bundled.load("digits")
    x0, labels, eps = digits(bench, 64)
    k, x, t = model.n_skips, x0 + 0.5 * eps, model.path.time_at(0.5)
    line = skip_schedule(k, 0.6, 1.0)
    formula = max(abs(r - (0.6 + (1.0 - 0.6) / k * i)) for i, r in enumerate(line, 1))
    up, down = (SkipTuned(model, bank).denoise(x, t, labels) for bank in (line, line[::-1]))
    gap = float((up - down).square().mean().sqrt())
    monotone = len(line) == k == len(network_of(model).skip_names) and line == sorted(line)
    measured = Estimate(gap, 0.0, 64, "RMS difference of denoised images, factors in order and reversed")
    return Verdict(
        monotone and formula < 1e-12 and gap > 1e-3, measured, 1e-3, f"{k} factors, {line[0]:.2f} to {line[-1]:.2f}"
    )


NORM = "appendix on GroupNorm"
LOSSES = "score-matching losses"
CLAIMS = (
    Claim("factors of 1 change nothing, to the bit, and leave no trace", "method", identity, 0.1, "digits"),
    Claim("EDM's norms keep skip and main features apart in 24 of 31 blocks", NORM, alignment, 0.1, "digits"),
    Claim("where groups align, only the shortcut sees the factor", NORM, only_the_shortcut, 0.1, "digits"),
    Claim(
        "smaller factors move the denoised image more, most at intermediate noise", "noise levels", live, 0.1, "digits"
    ),
    Claim("the schedule over depth is linear and its order matters", "method", depth, 0.1, "digits"),
    Claim("the loss in pixels is least without skip-tuning", LOSSES, pixel_loss, 0.3, "digits"),
    Claim("the loss in features falls with factors below 1 at some noise level", LOSSES, feature_loss, 0.3, "digits"),
    Claim(
        "a factor chosen by search does no harm at few steps and gains no less than at many",
        "main results",
        fewer_steps,
        1.0,
        "digits",
    ),
    Claim(
        "a distilled student has a lower norm ratio at the deepest skip than its teacher",
        "norm ratios",
        student_ratio,
        0.2,
        "digits",
    ),
)
