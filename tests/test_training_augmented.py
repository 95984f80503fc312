"""Augmentation labels on their way from the loader through the loop into the network."""

import pytest
import torch
from torch import nn

from explorer.data import Dataset, NonLeaking
from explorer.errors import BadValue
from explorer.nets import EDMUNet
from explorer.papers import paper
from explorer.papers.edm import EDMTraining
from explorer.process.times import LogNormal
from explorer.training import OptimizerPlan, Plan, Progress, load_checkpoint
from explorer.training.augmented import Augmented, augmented_batches
from tests.regressions import run, weights


def plain(n_augment=9, seed=0):
    torch.manual_seed(seed)
    net = EDMUNet((3, 8, 8), 8, (1, 2), 1, (4,), n_classes=3, n_augment=n_augment)
    return EDMTraining(net, shape=(3, 8, 8), sigma_data=0.5, times=LogNormal(-1.2, 1.2), n_classes=3)


def pictures(n=12):
    g = torch.Generator().manual_seed(0)
    return Dataset("noise", torch.rand(n, 3, 8, 8, generator=g) * 2 - 1, torch.arange(n) % 3, 3)


PLAN = Plan(4, 6, accumulate=2, tick_steps=4, checkpoint_steps=2, optimizer=OptimizerPlan(lr=1e-3))


def test_every_label_reaches_the_network_with_its_image(tmp_path):
    """The network sees, call by call, the labels the loader drew for just these images, and none when it is sampled."""
    method = Augmented(plain())
    net, seen = method.nets["net"], []
    net.register_forward_pre_hook(lambda m, args, kwargs: seen.append((len(args[0]), kwargs)), with_kwargs=True)
    how = NonLeaking(1.0)
    (tick,) = run(method, augmented_batches(pictures(), PLAN, augment=how), PLAN, tmp_path)
    drawn = [augmented_batches(pictures(), PLAN, augment=how).batch(i).augment for i in range(4)]
    expected = [part for labels in drawn for part in labels.chunk(2)]  # two micro-batches a step, in turns
    assert [n for n, _ in seen] == [3] * 8
    for (_, kwargs), labels in zip(seen, expected, strict=True):
        assert torch.equal(kwargs["augment"], labels) and labels.shape == (3, 9) and labels.abs().sum(0).min() >= 0
    assert all(bool((labels != 0).any(0).sum() >= 5) for labels in drawn)
    assert tick.emas["ema"]["net"].embedding.augment.weight.abs().max() > 0
    assert {k.split(".")[0] for k in method.state_dict()} == {"nets"}  # saved once, as without augmentation
    assert set(load_checkpoint(tmp_path).weights) >= {f"method.{k}" for k in plain().state_dict()}
    seen.clear()
    model = method.export(method.nets)
    model.denoise(torch.zeros(2, 3, 8, 8), 1.0, torch.tensor([0, 1]))
    assert seen == [(2, {})]


def test_without_changes_it_is_the_plain_method_bit_for_bit():
    """Labels of zero say that nothing was done."""
    still = NonLeaking(0.0, xflip=False)
    a, b = Augmented(plain()), plain()
    for method in (a, b):
        run(method, augmented_batches(pictures(), PLAN, augment=still), PLAN)
    assert torch.equal(weights(a), weights(b))


def test_the_labels_change_the_loss_and_get_a_gradient():
    method = Augmented(plain())
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = augmented_batches(pictures(), PLAN, augment=NonLeaking(1.0)).batch(0)
    now = Progress(0, 0, 0.0, torch.Generator().manual_seed(0))
    (update,) = method.updates(batch, now)
    update.loss.backward()
    column = method.nets["net"].embedding.augment.weight.grad.abs().sum(0)
    assert torch.equal(column > 0, (batch.augment != 0).any(0)) and int((column > 0).sum()) >= 6


def test_the_papers_recipes_augment_as_its_table_says():
    for name, p in (("cifar10", 0.12), ("cifar10-ve", 0.12), ("ffhq64", 0.15), ("afhqv2-64", 0.15)):
        recipe = paper("edm").recipe(name)
        assert recipe.settings["augment"] == p
        data = Dataset(name, torch.zeros(1, 3, *[32 if "cifar" in name else 64] * 2))
        with torch.device("meta"):
            made = recipe.method(data)
        assert isinstance(made, Augmented) and made.nets["net"].n_augment == 9
        stream = recipe.stream(pictures(), Plan(1, 6))
        assert stream.augment == NonLeaking(p) and stream.batch(0).augment.shape == (6, 9)
    assert paper("edm").recipe("imagenet64").stream is None


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(BadValue, match="reads no labels"):
        Augmented(plain(n_augment=0))
    method = plain()
    method.register_buffer("mean", torch.zeros(()))
    with pytest.raises(BadValue, match=r"state besides its networks \(mean\)"):
        Augmented(method)
    assert isinstance(method.nets, nn.ModuleDict)
