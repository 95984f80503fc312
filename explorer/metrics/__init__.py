"""Sample quality: numbers with errors, measured in a named feature space, comparable on the same seeds."""

from explorer.metrics.base import Estimate, Metric, verdict
from explorer.metrics.features import FEATURE_SPACES, FeatureSpace, feature_space
from explorer.metrics.frechet import Frechet, Moments, Reference, frechet_distance, frechet_from_samples
from explorer.metrics.kernel import KernelDistance, energy_distance, kid, rbf_mmd
from explorer.metrics.neighbours import Memorisation
from explorer.metrics.points import ExactW2, ModeCoverage, SlicedW2, wasserstein2

METRICS = {
    "fd": (Frechet, "Fréchet distance in a named feature space, bias-corrected, streaming"),
    "kid": (kid, "squared MMD with the cubic polynomial kernel, unbiased"),
    "mmd": (rbf_mmd, "squared MMD with a Gaussian kernel, unbiased"),
    "energy": (energy_distance, "energy distance, unbiased, nothing to tune"),
    "sw2": (SlicedW2, "sliced 2-Wasserstein distance over fixed directions"),
    "w2": (ExactW2, "2-Wasserstein distance by exact assignment, up to about 2000 points"),
    "modes": (ModeCoverage, "modes of a known mixture that were hit, share of samples near one, KL of the histogram"),
    "memorisation": (Memorisation, "distance to the nearest training sample against that of the test split"),
}

__all__ = [
    "FEATURE_SPACES",
    "METRICS",
    "Estimate",
    "ExactW2",
    "FeatureSpace",
    "Frechet",
    "KernelDistance",
    "Memorisation",
    "Metric",
    "ModeCoverage",
    "Moments",
    "Reference",
    "SlicedW2",
    "energy_distance",
    "feature_space",
    "frechet_distance",
    "frechet_from_samples",
    "kid",
    "rbf_mmd",
    "verdict",
    "wasserstein2",
]
