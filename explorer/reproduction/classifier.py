"""The small classifiers behind FD[digits-cnn] and FD[shapes32-cnn]: how they are trained and measured. Ours, no paper.

    L = sum_k cross entropy(logits_k(f), y_k) + w mean_{i != j} corr(f_i, f_j)^2
f are the features of a batch, standardised, y_0 the class, y_1 ... further factors of the image where the data set knows them.
The last term keeps the covariance of f well conditioned: with w = 0 the features crowd into the few directions that tell the
classes apart (condition number about 10^3 for digits), and a Fréchet distance sees little else. The further factors make f see
what the class does not depend on, such as the colour of a shape.

Legend: B batch, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.data import Batch, load_dataset
from explorer.metrics.features import network_space
from explorer.metrics.references import reference_entry
from explorer.nets.features import FeatureNet
from explorer.reproduction.evaluate import proportion, row
from explorer.training import Method, Progress, Update

Augment = Callable[[Tensor, torch.Generator | None], Tensor]


class Classification(Method):
    """Cross entropy with label smoothing, features decorrelated.

    Args:
        net: the classifier.
        decorrelation: w.
        smoothing: of the labels.
        augment: (images (B, C, H, W), generator) -> images; None leaves them as they are.
        factors: numbers of values n_1, n_2, ... of the further factors, each read off f by a linear layer that is not exported. The
            labels of a batch are then y_0 + K (y_1 + n_1 (y_2 + ...)).
    """

    def __init__(
        self,
        net: FeatureNet,
        *,
        decorrelation: float,
        smoothing: float,
        augment: Augment | None = None,
        factors: tuple[int, ...] = (),
    ):
        super().__init__()
        heads = {f"factor{k + 1}": nn.Linear(net.n_features, n) for k, n in enumerate(factors)}
        self.nets = nn.ModuleDict({"net": net, **heads})
        self.decorrelation, self.smoothing = decorrelation, smoothing
        self.augment, self.factors = augment, factors

    def updates(self, batch: Batch, progress: Progress):
        x = batch.x0 if self.augment is None else self.augment(batch.x0, progress.generator)
        f = self.nets["net"].features(x)  # (B, D), standardised over the batch
        rest, loss, logs = batch.labels, 0.0, {}
        for k, n in enumerate((self.nets["net"].n_classes, *self.factors)):
            label, rest = rest % n, rest // n
            logits = self.nets[f"factor{k}"](f) if k else self.nets["net"].logits(f)
            error = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
            name = f"_{k}" if k else ""
            logs |= {
                f"cross_entropy{name}": error,
                f"accuracy{name}": (logits.argmax(1) == label).float().mean(),
            }
            loss = loss + error
        penalty = off_diagonal(f)
        yield Update(tuple(self.nets), loss + self.decorrelation * penalty, logs | {"off_diagonal": penalty})

    def export(self, nets) -> FeatureNet:
        return nets["net"].eval()


def off_diagonal(f: Tensor) -> Tensor:
    """Mean squared correlation between different features, from standardised features (B, D)."""
    corr = f.T @ f / len(f)
    return (corr - torch.diag(corr.diag())).square().sum() / (f.shape[1] * (f.shape[1] - 1))


@torch.no_grad()
def measure(net: FeatureNet, *, name: str, data: str) -> dict[str, Any]:
    """Card entries of a trained classifier, whose features it standardises over the training split first.

    The entry "reference" states the moments of that split, so that a metric need not compute them.

    Args:
        name: of the classifier, for the rows.
        data: name of the data set: accuracy on both splits, and how well the features of the training split spread.
    """
    device = next(net.parameters()).device
    splits = {split: load_dataset(data, split) for split in ("test", "train")}
    x = {split: part.take(slice(None)).to(device) for split, part in splits.items()}
    net.standardise(x["train"])
    features = {split: torch.cat([net.features(part) for part in images.split(1024)]) for split, images in x.items()}
    spectrum = torch.linalg.eigvalsh(torch.cov(features["train"].double().T))
    condition = {
        "metric": "condition number of the feature covariance",
        "value": float(spectrum[-1] / spectrum[0]),
        "std_error": 0.0,
        "n": len(features["train"]),
        "note": f"training split, {net.n_features} features of variance 1, eigenvalues "
        f"{float(spectrum[0]):.3g} to {float(spectrum[-1]):.3g}",
    }
    rows = [
        row(
            proportion(
                net.logits(f).argmax(1).cpu() == splits[split].labels, f"accuracy of {name} on the {split} split"
            )
        )
        for split, f in features.items()
    ]
    space = network_space(name, net, net.n_features)
    moments = reference_entry(space, features["train"].double().cpu(), data=f"{data}/train")
    return {"metrics": [*rows, condition], "reference": moments}
