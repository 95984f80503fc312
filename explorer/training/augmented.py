"""Training on augmented images whose networks are told what was done to each, so that they do not learn to do it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from explorer.data import Dataset, Loader
from explorer.data.loader import Augment
from explorer.errors import BadValue
from explorer.training import distributed
from explorer.training.method import Method, Update
from explorer.training.plan import Plan


class Augmented(Method):
    """A method whose networks read, with every image, the labels of its augmentation; see `explorer.data.NonLeaking`.

    The labels of a batch (`Batch.augment`) reach the network's `forward(..., augment=labels)` wherever the method calls it. A model
    is sampled without them, which says that nothing was done.

    Args:
        plain: a method that calls its networks once for each image of the batch, in the batch's order, and has no other state.
    Raises:
        BadValue: it has other state, which would not be saved, or a network that reads no labels.
    Source: Karras et al. 2022, arXiv 2206.00364, section 5 and appendix F.2.
    """

    def __init__(self, plain: Method):
        super().__init__()
        if other := [name for name in plain.state_dict() if not name.startswith("nets.")]:
            raise BadValue(f"{type(plain).__name__} has state besides its networks ({other[0]}) and cannot be wrapped.")
        if deaf := [name for name, net in plain.nets.items() if not getattr(net, "n_augment", 0)]:
            raise BadValue(f"network {deaf[0]!r} reads no labels of augmentation: build it with n_augment=9.")
        self.nets, self._plain = (
            plain.nets,
            (plain,),
        )  # in a tuple it is not registered, and the networks are saved once
        self.shape = getattr(plain, "shape", None)

    def updates(self, batch: Any, progress: Any) -> Iterator[Update]:
        [plain] = self._plain
        running = plain.updates(batch, progress)
        shown = nn.ModuleDict({name: Shown(net, batch.augment) for name, net in self.nets.items()})
        while True:
            plain.nets = shown  # micro-batches take turns
            try:
                update = next(running, None)
            finally:
                plain.nets = self.nets
            if update is None:
                return
            yield update

    def export(self, nets: nn.ModuleDict) -> nn.Module:
        return self._plain[0].export(nets)


class Shown(nn.Module):
    """A network that is told the labels of augmentation (B, n) of the images that it will be called with."""

    def __init__(self, net: nn.Module, labels: Tensor | None):
        super().__init__()
        self.net, self.labels = net, labels

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, augment=self.labels, **kwargs)


def augmented_batches(data: Dataset, plan: Plan, *, augment: Augment) -> Loader:
    """Endless batches of a data set, augmented anew each time, shared out over the processes; for `Recipe.stream`."""
    place = {"rank": distributed.rank(), "world": distributed.world()}
    return Loader(data, plan.batch_size, seed=plan.seed, augment=augment, **place)
