"""Write the exact models of assets/models: `python assets/models/build_oracles.py` (seconds; the result does not depend on a seed)."""

from __future__ import annotations

from pathlib import Path

from explorer.data import digits, oracle
from explorer.models.base import Oracle
from explorer.models.bundled import save_model
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM

FOLDER = Path(__file__).resolve().parent
COMMAND = "python assets/models/build_oracles.py"


def main() -> None:
    for toy in ("8gaussians", "two-point"):
        model = Oracle(oracle(toy), EDM(), t_range=(0.002, 80.0))
        notes = "Exact: the toy is a Gaussian mixture, so its denoiser is a formula."
        save_model(FOLDER, f"oracle-{toy}", model, {"data": toy, "recipe": COMMAND, "notes": notes})
    x, labels = digits("train")
    model = Oracle(GaussianMixture.finite(x, labels), EDM(), t_range=(0.002, 80.0))
    notes = (
        "The ideal denoiser of the 1297 training images. Its samples are the training images themselves: a reference for "
        "trajectories and for memory, not for quality."
    )
    save_model(FOLDER, "oracle-digits", model, {"data": "digits", "recipe": COMMAND, "notes": notes})


if __name__ == "__main__":
    main()
