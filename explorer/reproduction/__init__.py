"""Papers as records: recipes and what they need, claims with their evidence, published numbers."""

from explorer.reproduction.bench import Bench
from explorer.reproduction.recipe import Bundled, Claim, Need, Paper, Published, Recipe, Trained, Verdict
from explorer.reproduction.run import exported, publish, train_recipe

__all__ = [
    "Bench",
    "Bundled",
    "Claim",
    "Need",
    "Paper",
    "Published",
    "Recipe",
    "Trained",
    "Verdict",
    "exported",
    "publish",
    "train_recipe",
]
