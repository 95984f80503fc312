"""Papers as records: recipes and what they need, claims with their evidence, published numbers."""

from explorer.reproduction.bench import Bench
from explorer.reproduction.evidence import Evidence, Outcome, Record, evidence_of, gather
from explorer.reproduction.recipe import Bundled, Claim, Need, Paper, Published, Recipe, Trained, Verdict
from explorer.reproduction.run import exported, publish, publish_snapshot, train_recipe

__all__ = [
    "Bench",
    "Bundled",
    "Claim",
    "Evidence",
    "Need",
    "Outcome",
    "Paper",
    "Published",
    "Recipe",
    "Record",
    "Trained",
    "Verdict",
    "evidence_of",
    "exported",
    "gather",
    "publish",
    "publish_snapshot",
    "train_recipe",
]
