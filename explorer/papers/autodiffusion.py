"""AutoDiffusion: training-free optimization of time steps and architectures (Li et al., ICCV 2023, arXiv 2309.10438).

A frozen network, a chain of T noise levels, a number of steps K too small for any rule of thumb. A candidate says which steps are taken
and which blocks of the network each step leaves out; an evolutionary search finds the candidate of least distance to the data.

    candidate   {(s_1, L_1), ..., (s_K, L_K)},  s_i in 0 ... T-1 all different, L_i a set of the network's blocks
    respacing   beta_i = 1 - abar(s_i) / abar(s_(i-1))          the shorter chain has the marginals of the full one at s_i; DDIM walks it
    leaving out a block's convolutions or its attention; shortcuts and resampling stay                          `explorer.nets`
    budget      sum over steps of the blocks that act <= N_max, so that blocks left out pay for further steps
    stage 1     all blocks, steps only, until the best candidate stays for an epoch, or after 4 epochs
    stage 2     the largest share of blocks left out at a step grows by a fifth of its limit each epoch; the least one is reached after 5
    an epoch    parents: the k best of all so far; children of one (mutation), of two (crossover), fresh ones up to the population

The search is a `Tuner`: any objective, any seed, a journal, held-out numbers. A candidate is measured once. Genes are times of a chain
(start from a `ChainSampler`), or noise levels anywhere on a line in ln sigma (start from a grid in sigma; for EDM's networks).

Where the released code slips, we do not follow: there a mutated list of blocks is compared, not assigned; the longer tail in a crossover
is chosen by comparing lists; a crossover may repeat a step, which shortens the chain. Here children are repaired: a repeated step is drawn
anew, one over budget loses steps, one under it is filled up. Blocks are numbered in the order in which they act.

Nothing but a toy for the claims is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from explorer.data import Dataset
from explorer.errors import BadValue, UnknownName
from explorer.models.base import Model, Preconditioned
from explorer.nets import MLP
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import LogNormal
from explorer.reproduction import Paper, Published, Recipe
from explorer.sampling import DDIM, OdeSampler, TimeGrid
from explorer.training.denoising import Denoising
from explorer.training.plan import EmaPlan, OptimizerPlan, Plan
from explorer.tuning import Layers, Proposal, Trial, Tuner
from explorer.tuning.genome import Candidate, Gene, Genome, genome_of


def uniform_steps(n: int, n_levels: int = 1000) -> tuple[int, ...]:
    """DDIM's evenly spaced times: multiples of T // n from 0. Song et al. 2020, arXiv 2010.02502."""
    return tuple(i * (n_levels // n) for i in range(n))


@dataclass(frozen=True)
class AutoDiffusion(Tuner):
    """The evolutionary search over steps and, where asked, over the blocks that each step leaves out.

    Args:
        population: candidates of an epoch; epochs: after the initial population.
        parents: the k best of all so far, which have children; mutations, crossovers: children of an epoch, the rest is drawn.
        m_prob: with which a mutation replaces a step, a block that is left out, or an empty set of them.
        left_out: least and largest share of the blocks that a step leaves out in the end; (0, 0) searches steps only.
        budget: most blocks that act, all steps together; None is as many as the start's steps take with all blocks.
        seeded: begin with the start and mutations of it in half of the population; else all are drawn.
    """

    population: int = 50
    epochs: int = 10
    parents: int = 10
    mutations: int = 25
    crossovers: int = 10
    m_prob: float = 0.25
    left_out: tuple[float, float] = (0.0, 0.0)
    budget: int | None = None
    seeded: bool = True
    name = "autodiffusion"

    def __post_init__(self):
        low, high = self.left_out
        if min(self.population, self.parents) < 1 or min(self.epochs, self.mutations, self.crossovers) < 0:
            raise BadValue("a population needs at least one candidate and one parent, and no number below 0")
        if not 0 <= self.m_prob <= 1 or not 0 <= low <= high < 1:
            raise BadValue("probabilities lie in [0, 1], and the shares of blocks left out rise from 0 to less than 1")
        if high > 0 and self.epochs <= 5:
            raise BadValue(
                f"blocks are left out step by step over 5 epochs, so that {self.epochs} epochs never get there: allow at least 6"
            )

    def search(self, task):
        genome, rng = genome_of(task.start, task.model), np.random.default_rng(task.seed)
        pool = Pool(genome, rng, self._layers(task.model), self.budget, self.m_prob)
        trial = yield Proposal(task.start, note="start")
        archive: dict[Candidate, Trial] = {pool.start: trial} if pool.cost(pool.start) <= pool.budget else {}
        stage, leader = 1, None
        for epoch in range(self.epochs + 1):
            for candidate, how in self._generation(pool, archive, epoch):
                archive[candidate] = yield Proposal(genome.setting(candidate), note=f"epoch {epoch}, {how}")
            best = min(archive, key=lambda c: archive[c].value)
            if self.left_out[1] > 0 and (stage == 2 or best == leader or epoch >= 4):
                stage = 2
                high = min(pool.share[1] + self.left_out[1] / 5, self.left_out[1])
                pool.share = (min(self.left_out[0], high) if epoch >= 5 else 0.0, high)
            leader = best

    def _layers(self, model: Model) -> int:
        """Blocks of the network; 1 stands for all of them where none is to be left out."""
        if self.left_out[1] == 0:
            return 1
        if model.n_layers == 0:
            raise BadValue(
                f"{model.name or 'this model'} has no blocks to leave out: choose a U-Net, or search steps only"
            )
        return model.n_layers

    def _generation(self, pool: Pool, archive: dict[Candidate, Trial], epoch: int) -> list[tuple[Candidate, str]]:
        out: dict[Candidate, str] = {}

        def add(make: Callable[[], Candidate], how: str, quota: int) -> None:
            wanted = len(out) + quota
            for _ in range(10 * quota):
                if len(out) >= wanted:
                    return
                candidate = make()
                if candidate not in archive and candidate not in out:
                    out[candidate] = how

        if epoch == 0:
            if self.seeded:
                drawn = max(self.population // 2, 1)
                add(pool.drawn, "drawn", drawn)
                add(lambda: pool.mutated(pool.start, 0.1), "near the start", self.population - drawn - 1)
        else:
            best = sorted(archive, key=lambda c: archive[c].value)[: self.parents]
            one = lambda: best[pool.rng.integers(len(best))]  # noqa: E731
            add(lambda: pool.mutated(one(), self.m_prob), "mutation", min(self.mutations, self.population))
            add(lambda: pool.crossed(one(), one()), "crossover", min(self.crossovers, self.population - len(out)))
        add(pool.drawn, "drawn", self.population - len(out) - (epoch == 0))
        return list(out.items())


class Pool:
    """Draws candidates within a budget.

    Args:
        n_layers: blocks of a full step.
        budget: of blocks, all steps together; None is the start's.
        m_prob: with which a set of blocks is mutated.
    Attributes:
        share: least and largest share of the blocks that a step may leave out now.
    """

    def __init__(
        self, genome: Genome, rng: np.random.Generator, n_layers: int, budget: int | None = None, m_prob: float = 0.25
    ):
        self.genome, self.rng, self.n_layers, self.m_prob = genome, rng, n_layers, m_prob
        steps, layers = genome.steps(), genome.start.wrapper(Layers)
        out = dict(zip(steps, ((),) * len(steps), strict=True))
        if layers is not None and n_layers > 1:
            nearest = lambda s: min(layers.levels, key=lambda level: abs(math.log(level[0] / genome.sigma(s))))  # noqa: E731
            out = {s: nearest(s)[1] for s in steps}
        self.start: Candidate = tuple(out.items())
        self.budget = self.cost(self.start) if budget is None else budget
        if self.budget < n_layers:
            raise BadValue(f"a budget of {self.budget} blocks does not hold one step of {n_layers}")
        self.share = (0.0, 0.0)

    def cost(self, candidate: Iterable[Gene]) -> int:
        """Blocks that act, all steps together."""
        return sum(self.n_layers - len(out) for _, out in candidate)

    def drawn(self) -> Candidate:
        """Steps drawn one by one until the next would exceed the budget."""
        return self.repaired([])

    def mutated(self, parent: Candidate, rate: float) -> Candidate:
        """Each step replaced with probability `rate`, and what it leaves out as well."""
        taken, genes = {step for step, _ in parent}, []
        for step, out in parent:
            if self.rng.random() < rate:
                step = self.genome.fresh(self.rng, taken)
                taken.add(step)
            genes.append((step, self._mutated(out)))
        return self.repaired(genes)

    def crossed(self, a: Candidate, b: Candidate) -> Candidate:
        """At each position the gene of either parent, a step with what it leaves out; then the tail of the longer one."""
        n, longer = min(len(a), len(b)), max(a, b, key=len)
        return self.repaired([(a, b)[int(self.rng.integers(2))][i] for i in range(n)] + list(longer[n:]))

    def repaired(self, genes: list[Gene]) -> Candidate:
        """A candidate of these genes: repeated steps drawn anew, steps dropped while over budget, others added while there is room."""
        steps: dict[float, tuple[int, ...]] = {}
        for step, out in genes:
            steps[self.genome.fresh(self.rng, steps) if step in steps else step] = out
        while self.cost(steps.items()) > self.budget:
            steps.pop(list(steps)[int(self.rng.integers(len(steps)))])
        while self.cost(steps.items()) + self.n_layers - len(out := self._drawn_out()) <= self.budget:
            steps[self.genome.fresh(self.rng, steps)] = out
        return tuple(sorted(steps.items()))

    def _drawn_out(self) -> tuple[int, ...]:
        if self.share[1] == 0:
            return ()
        n = min(round(self.rng.uniform(*self.share) * self.n_layers), self.n_layers - 1)
        return tuple(sorted(self.rng.choice(self.n_layers, n, replace=False).tolist()))

    def _mutated(self, out: tuple[int, ...]) -> tuple[int, ...]:
        if self.share[1] == 0:
            return out
        if not out:
            return self._drawn_out() if self.rng.random() < self.m_prob else ()
        kept = list(out)
        for k in range(len(kept)):
            free = sorted(set(range(self.n_layers)) - set(kept))
            if free and self.rng.random() < self.m_prob:
                kept[k] = free[int(self.rng.integers(len(free)))]
        return tuple(sorted(kept))


def sized(trials: int, left_out: tuple[float, float] = (0.0, 0.0)) -> AutoDiffusion:
    """The paper's proportions for about this many candidates: ten epochs, half of each mutations, a quarter crossovers."""
    population = min(max(trials // 11, 4), 50)
    return AutoDiffusion(
        population,
        parents=max(population // 5, 2),
        mutations=population // 2,
        crossovers=population // 4,
        left_out=left_out,
    )


def random_search(n: int) -> AutoDiffusion:
    """As many candidates drawn as an evolution would measure: what it has to beat."""
    return AutoDiffusion(population=n + 1, epochs=0, seeded=False)


PUBLISHED = (
    Published("imagenet-64x64", "FID", 17.86, 4, "abstract", "ADM-G, searched steps"),
    Published("imagenet-64x64", "FID", 138.66, 4, "abstract", "ADM-G, DDIM"),
)


def toy() -> Recipe:
    """An MLP on eight Gaussians: small, so that two of them differ."""

    def method(points: Dataset) -> Denoising:
        about = {"shape": points.shape, "t_range": (0.002, 80.0), "name": "toy-8gaussians-small"}
        net = Preconditioned(
            MLP(points.shape[0], width=64, depth=3), EDM(), EDMPrecondition(points.sigma_data), **about
        )
        return Denoising(net, LogNormal(-1.2, 1.6))

    optimizer = OptimizerPlan(lr=3e-3, betas=(0.9, 0.99), warmup_images=20_000, decay="cosine")
    return Recipe(
        name="toy-8gaussians-small",
        data="8gaussians",
        method=method,
        plan=Plan(2500, 256, optimizer=optimizer, emas=(EmaPlan(half_life=20_000),), tick_steps=500),
        sampler=OdeSampler(DDIM(), TimeGrid.karras(35, 0.002, 80.0)),
        cost="half a CPU minute",
        notes="For the transfer of a schedule between two networks.",
    )


def recipe(name: str) -> Recipe:
    if name != "toy":
        raise UnknownName("recipe", name, ("toy",))
    return toy()


PAPER = Paper(
    slug="autodiffusion",
    title="AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model Acceleration",
    arxiv="2309.10438",
    family="sampler",
    recipe=recipe,
    recipes=("toy",),
    published=PUBLISHED,
)
