"""How the pages present models: under which heading, by which name, with which words for their classes."""

from __future__ import annotations

import pytest
import torch

from explorer.apps import catalogue
from explorer.models import bundled
from explorer.models.base import Preconditioned
from explorer.nets.unet import UNet
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition


@pytest.fixture(name="kept")
def _kept(tmp_path, monkeypatch):
    """Writes a tiny model among the user's own."""
    monkeypatch.setenv("EXPLORER_RUNS", str(tmp_path))

    def write(name: str, shape: tuple[int, int, int], n_classes: int = 0, **card):
        net = UNet(shape, channels=8, mult=(1,), blocks=0, n_classes=n_classes)
        model = Preconditioned(
            net, EDM(), EDMPrecondition(0.5), shape=shape, n_classes=n_classes, t_range=(0.01, 10.0), name=name
        )
        bundled.save_model(tmp_path / "kept", name, model, card)

    return write


def test_images_stand_under_their_data_and_shape_before_everything_else(kept):
    kept("shapes32-mine", (3, 32, 32), 6, data="shapes32")
    kept("fractals-mine", (3, 16, 16), data="fractals")
    kept("mine", (1, 8, 8), data="digits", run="runs/mine")
    groups = {group["title"]: [item["name"] for item in group["items"]] for group in catalogue.groups()}
    assert "shapes32-mine" in groups["Shapes, 32 × 32, colour"]
    assert groups["Fractals, 16 × 16, colour"] == ["fractals-mine"]
    assert "digits" in groups["Digits, 8 × 8"] and "digits-cd" in groups["Digits, 8 × 8"]
    assert list(groups)[-3:] == ["Points in the plane", "Exact, no network", "Kept from your runs"]
    assert groups["Kept from your runs"] == ["mine"]
    assert sorted(name for items in groups.values() for name in items) == sorted(catalogue.names())


def test_titles_say_what_a_model_is(kept):
    kept("shapes32", (3, 32, 32), 6, data="shapes32")
    kept("shapes16", (3, 16, 16), data="shapes16")
    titles = {name: catalogue.title(name) for name in catalogue.names()}
    assert titles["digits"] == "digits / class-conditional" and titles["digits-uncond"] == "digits / unconditional"
    assert titles["shapes32"] == "shapes32 / class-conditional" and titles["shapes16"] == "shapes16 / unconditional"
    assert titles["toy-8gaussians"] == "8gaussians / trained" and titles["oracle-8gaussians"] == "8gaussians / exact"
    assert titles["digits-cd"] == "digits / cd"


def test_classes_have_the_names_their_card_gives_them(kept):
    kept("with", (3, 16, 16), 2, data="shapes", classes=["disc", "star"])
    assert catalogue.class_names("with", [1, 0, -1, 2]) == ["star", "disc", "-1", "2"]
    assert catalogue.class_names("digits", torch.tensor([3, -1]).tolist()) == ["3", "-1"]
