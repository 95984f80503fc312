"""The bundled classifier of lit shapes, whose 32 pooled features are the space of FD[shapes32-cnn]. Ours, no paper.

Trained and measured as `explorer.reproduction.classifier` says, on fresh pictures, for their class, colour and size and for
whether the ground is dark and whether it is warm at the upper edge: what a picture is made of but for the place of the shape.

    explorer train shapes_cnn --data shapes32
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from explorer.data import SHAPES, Dataset, Loader
from explorer.data.shapes import LIT_GROUND
from explorer.errors import UnknownName
from explorer.nets.features import FeatureNet
from explorer.reproduction import Paper, Recipe
from explorer.reproduction.classifier import Classification, measure
from explorer.training import EmaPlan, OptimizerPlan, Plan, distributed

NAME, DATA = "shapes32-cnn", "shapes32"
SHAPES32 = SHAPES[DATA]
NET = {"shape": [3, 32, 32], "n_classes": 6, "width": 32, "n_features": 32, "dropout": 0.1, "patch": 2}
FACTORS = (len(SHAPES32.colours), 2, 2, 2)
"""Values of colour, size, dark ground and warm ground."""
DECORRELATION, SMOOTHING = 10.0, 0.05
PLAN = Plan(
    n_steps=1000,
    batch_size=128,
    optimizer=OptimizerPlan(lr=2e-3, weight_decay=0.05, decay="cosine", warmup_images=6400),
    emas=(EmaPlan(half_life=4000, ramp_up=None),),
    tick_steps=50,
    checkpoint_steps=200,
)


def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, 32, 32) and all their factors (n,) in one number, as `Classification` reads it."""
    what = SHAPES32.factors(n, generator)
    values = (what.label, what.colour, what.large, what.ground < sum(LIT_GROUND) / 2, what.tint[:, 0] > 0)
    code, radix = torch.zeros(n, dtype=torch.int64), 1
    for value, size in zip(values, (len(SHAPES32.classes), *FACTORS), strict=True):
        code, radix = code + radix * value.long(), radix * size
    return SHAPES32.render(what), code


def stream(data: Dataset, plan: Plan) -> Loader:
    """Fresh pictures without end."""
    place = {"rank": distributed.rank(), "world": distributed.world()}
    return Loader(dataclasses.replace(data, draw=draw), plan.batch_size, seed=plan.seed, fresh=True, **place)


def recipe(name: str) -> Recipe:
    """About three minutes on one core: 1000 steps of 128 pictures."""
    if name != DATA:
        raise UnknownName("recipe", name, (DATA,))
    return Recipe(
        name=NAME,
        data=DATA,
        method=lambda data: Classification(
            FeatureNet(**NET), decorrelation=DECORRELATION, smoothing=SMOOTHING, factors=FACTORS
        ),
        plan=PLAN,
        stream=stream,
        sampler=None,  # nothing to sample from
        measure=partial(measure, name=NAME, data=DATA),
        cost="3 CPU minutes",
        notes="Its 32 features, of mean 0 and variance 1 over the training split, are the space of FD[shapes32-cnn]. They were "
        "also trained to tell colour, size, and how dark and how warm the ground is.",
        settings={"decorrelation": DECORRELATION, "label_smoothing": SMOOTHING, "factors": list(FACTORS)},
    )


PAPER = Paper(
    slug="shapes_cnn",
    title="The classifier of lit shapes behind FD[shapes32-cnn]",
    arxiv="",
    family="feature space",
    recipe=recipe,
    recipes=(DATA,),
)
