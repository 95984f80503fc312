"""What generated samples are compared with: moments of the training split, stated on a bundled classifier's card or computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from explorer.data import Dataset
from explorer.errors import BadFile, BadValue
from explorer.metrics.features import FeatureSpace
from explorer.metrics.frechet import Moments, Reference
from explorer.models import bundled

CLASSIFIERS = {"digits": "digits-cnn", "shapes32": "shapes32-cnn"}
"""Classifier, and with it feature space, of each labelled image data set that has one."""


def reference_for(features: FeatureSpace, data: Dataset) -> Reference:
    """Moments of all samples of a data set: from the card of the classifier whose features these are, else from the samples.

    Raises:
        BadFile: the card states moments that are none.
    """
    name = _split(data)
    if features.name in bundled.names("classifier"):
        stated = bundled.card(features.name).get("reference")
        if isinstance(stated, dict) and stated.get("data") == name and stated.get("checksum") == features.hash:
            return _from_card(features, stated)
    return Reference.of(features, _batches(data), data=name)


def reference_entry(space: FeatureSpace, features: Tensor, *, data: str) -> dict[str, Any]:
    """Moments of features (N, D) for their classifier's card, as plain JSON: `covariance` is the upper triangle, row by row.

    Args:
        data: what the samples are, as "digits/train".
    """
    moments = Moments.of(features)
    return {
        "data": data,
        "n": moments.n,
        "checksum": space.hash,
        "mean": moments.mean.tolist(),
        "covariance": moments.cov[np.triu_indices(space.dim)].tolist(),
    }


def _from_card(features: FeatureSpace, stated: dict[str, Any]) -> Reference:
    try:
        cov = np.zeros((features.dim, features.dim))
        cov[np.triu_indices(features.dim)] = stated["covariance"]
        cov += np.triu(cov, 1).T
        found = Reference(
            features.name, features.hash, int(stated["n"]), np.array(stated["mean"], float), cov, stated["data"]
        )
        found.check(features)
    except (KeyError, TypeError, ValueError, BadValue) as error:
        raise BadFile(
            f"the card of {features.name!r} states moments of {stated['data']} that are none: {error}."
        ) from None
    return found


def _split(data: Dataset) -> str:
    return data.name if data.name.endswith("-test") else f"{data.name}/train"


def _batches(data: Dataset):
    return (data.take(slice(i, i + 1024)) for i in range(0, len(data), 1024))
