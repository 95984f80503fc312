"""Sample quality: numbers with errors, measured in a named feature space, comparable on the same seeds."""

from explorer.metrics.base import Estimate, Metric, verdict
from explorer.metrics.extrapolate import fid_infinity
from explorer.metrics.features import FEATURE_SPACES, FeatureSpace, feature_space
from explorer.metrics.frechet import Frechet, Moments, Reference, frechet_distance, frechet_from_samples
from explorer.metrics.kernel import KernelDistance, energy_distance, kid, rbf_mmd
from explorer.metrics.manifolds import Manifold, coverage, density, precision, recall
from explorer.metrics.neighbours import Memorisation
from explorer.metrics.points import ExactW2, ModeCoverage, SlicedW2, wasserstein2
from explorer.metrics.protocols import PROTOCOLS, Protocol, protocol
from explorer.metrics.scores import InceptionScore
from explorer.metrics.statistics import read_statistics, write_statistics

METRICS = {
    "fd": (Frechet, "Fréchet distance in a named feature space, bias-corrected, streaming"),
    "kid": (kid, "squared MMD with the cubic polynomial kernel, unbiased"),
    "mmd": (rbf_mmd, "squared MMD with a Gaussian kernel, unbiased"),
    "energy": (energy_distance, "energy distance, unbiased, nothing to tune"),
    "sw2": (SlicedW2, "sliced 2-Wasserstein distance over fixed directions"),
    "w2": (ExactW2, "2-Wasserstein distance by exact assignment, up to about 2000 points"),
    "precision": (precision, "share of samples within the k-nearest-neighbour manifold of the data"),
    "recall": (recall, "share of the data within the k-nearest-neighbour manifold of the samples"),
    "density": (density, "precision that counts the balls a sample is in"),
    "coverage": (coverage, "share of the data whose ball holds a sample"),
    "is": (InceptionScore, "Inception Score by splits: samples recognised, and of many kinds"),
    "modes": (ModeCoverage, "modes of a known mixture that were hit, share of samples near one, KL of the histogram"),
    "memorisation": (Memorisation, "distance to the nearest training sample against that of the test split"),
}

__all__ = [
    "FEATURE_SPACES",
    "METRICS",
    "PROTOCOLS",
    "Estimate",
    "ExactW2",
    "FeatureSpace",
    "Frechet",
    "InceptionScore",
    "KernelDistance",
    "Manifold",
    "Memorisation",
    "Metric",
    "ModeCoverage",
    "Moments",
    "Protocol",
    "Reference",
    "SlicedW2",
    "coverage",
    "density",
    "energy_distance",
    "feature_space",
    "fid_infinity",
    "frechet_distance",
    "frechet_from_samples",
    "kid",
    "precision",
    "protocol",
    "rbf_mmd",
    "read_statistics",
    "recall",
    "verdict",
    "wasserstein2",
    "write_statistics",
]
