"""Data sets against their stated constants, files against their promises, batches against resumption."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from explorer.data import (
    TOYS,
    Dataset,
    Drawing,
    Loader,
    digits,
    digits_dataset,
    load_dataset,
    load_points,
    names,
    oracle,
    points,
    toy_dataset,
)
from explorer.errors import BadFile, BadValue, UnknownName


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", TOYS)
def test_toys_have_mean_zero_and_mean_variance_one_quarter(name):
    n = 100_000
    x, labels = TOYS[name].draw(n, generator(11))
    assert x.shape == (n, 2) and x.dtype == torch.float32
    x = x.double()
    five = 5 / math.sqrt(n)  # five standard errors, per unit of the standard deviation of what is averaged
    assert (x.mean(0).abs() <= five * x.std(0) + 1e-9).all()
    square = x.square().mean(1)
    assert abs(float(square.mean()) - 0.25) <= five * float(square.std()) + 1e-6
    if labels is None:
        assert TOYS[name].n_classes == 0
    else:
        k = TOYS[name].n_classes
        share = torch.bincount(labels, minlength=k) / n
        assert len(share) == k and (share - 1 / k).abs().max() <= five * math.sqrt((1 - 1 / k) / k)


@pytest.mark.parametrize("name", TOYS)
def test_toys_depend_on_the_generator_only(name):
    torch.manual_seed(1)
    first = points(name, 50, generator(4))
    torch.manual_seed(2)
    assert torch.equal(points(name, 50, generator(4)), first)
    assert not torch.equal(points(name, 50, generator(5)), first)


@pytest.mark.parametrize("name", ["8gaussians", "two-point"])
def test_oracles_have_the_moments_and_the_modes_of_the_samples(name):
    mixture = oracle(name)
    assert torch.allclose(mixture.mean(), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert float(mixture.cov().trace()) / 2 == pytest.approx(0.25, rel=1e-12)
    x, labels = TOYS[name].draw(2000, generator())
    assert torch.equal(mixture.labels, torch.arange(TOYS[name].n_classes))
    offset = x.double() - mixture.means[labels]
    spread = float(mixture.variances[0])
    n = offset.numel()
    assert float(offset.square().mean()) == pytest.approx(spread, rel=5 * math.sqrt(2 / n), abs=1e-14)


def test_a_toy_without_closed_form_has_no_oracle():
    with pytest.raises(BadValue, match="8gaussians, two-point"):
        oracle("moons")


def test_checkerboard_fills_eight_of_sixteen_squares_evenly():
    n = 40_000
    x = points("checkerboard", n, generator()).double() / TOYS["checkerboard"].scale
    cell = (x + 2).floor().clamp(0, 3).long()
    counts = torch.bincount(4 * cell[:, 1] + cell[:, 0], minlength=16).view(4, 4)
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert (counts[~dark] == 0).all()
    assert (counts[dark] / n - 1 / 8).abs().max() <= 5 * math.sqrt(1 / 8 * 7 / 8 / n)


def test_digits_split_is_fixed_disjoint_and_stratified():
    train, labels = digits("train")
    test, test_labels = digits("test")
    assert train.shape == (1297, 1, 8, 8) and test.shape == (500, 1, 8, 8)
    assert train.min() == -1 and train.max() == 1
    assert torch.equal((train + 1) * 8, ((train + 1) * 8).round())  # the seventeen grey levels, exactly
    everything = torch.cat([train, test]).flatten(1)
    from sklearn.datasets import load_digits

    raw = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    key = lambda rows: sorted(row.numpy().tobytes() for row in rows)  # noqa: E731
    assert key(everything) == key(raw)
    counts = torch.bincount(labels) + torch.bincount(test_labels)
    assert (torch.bincount(test_labels) - counts * 500 / 1797).abs().max() < 1
    # pinned: every published number of the digits models refers to this split
    assert digits_dataset("train").checksum == "bc269036c03db90e"
    assert digits_dataset("train").sigma_data == pytest.approx(float(train.std()), abs=0.005)


def test_every_name_loads_both_splits():
    for name in names():
        train, test = load_dataset(name), load_dataset(name, "test")
        assert isinstance(train, Dataset) and train.shape == test.shape and train.n_classes == test.n_classes
        assert train.checksum == load_dataset(name).checksum != test.checksum
    with pytest.raises(UnknownName, match="Did you mean 'moons'"):
        load_dataset("moon")


def test_points_from_csv_and_npz(tmp_path):
    x = np.random.default_rng(0).normal([3, -2], [2.0, 0.5], (400, 2))
    classes = np.arange(400) % 3
    file = tmp_path / "mine.csv"
    file.write_text("x;y;class\n" + "\n".join(f"{a:.17g};{b:.17g};{k}" for (a, b), k in zip(x, classes, strict=True)))
    np.savez(tmp_path / "mine.npz", x=x, labels=classes)
    from_csv, from_npz = load_points(file, labels=True), load_points(tmp_path / "mine.npz")
    assert torch.equal(from_csv.x, from_npz.x) and torch.equal(from_csv.labels, from_npz.labels)
    assert from_csv.n_classes == 3 and from_csv.sigma_data == 0.5
    assert float(from_csv.x.double().var(0, correction=0).mean()) == pytest.approx(0.25, rel=1e-6)  # float32
    back = from_csv.x.double().numpy() / from_csv.card["scale"] + from_csv.card["raw_mean"]
    np.testing.assert_allclose(back, x, atol=1e-6)
    raw = load_points(tmp_path / "mine.npz", standardise=False)
    np.testing.assert_allclose(raw.x, x.astype(np.float32))
    assert load_dataset(str(file)).shape == (3,)


class _Explosive:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "1,2\n3,oops\n", "line 2"),
        ("a.csv", "1,2\n3\n", "line 2"),
        ("a.csv", "x,y\n", "no points"),
        ("a.csv", "1,2\n3,nan\n", "point 1 is not finite"),
        ("a.csv", "1,2\n", "at least two points"),
        ("a.csv", "1,2\n1,2\n", "nothing to learn"),
        ("a.csv", b"\xff\xfe\x00", "UTF-8"),
        ("a.npz", b"not a zip", "not a readable NPZ"),
        ("a.dat", "1,2\n", "expected a file ending"),
    ],
)
def test_malformed_point_files_are_explained(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((BadFile, BadValue), match=message):
        load_points(file)


def test_point_files_cannot_execute_code(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([_Explosive()], dtype=object))
    with pytest.raises(BadFile):
        load_points(tmp_path / "evil.npz")
    with pytest.raises(BadFile, match="no file"):
        load_points(tmp_path / "missing.csv")


def test_a_drawing_is_sampled_in_proportion_to_its_pixels():
    pixels = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 4.0]])
    drawing = Drawing(pixels)
    n = 40_000
    x, _ = drawing.draw(n, generator(3))
    mean, variance = drawing.moments()
    square = x.double().square().mean(1)
    assert float(square.mean()) == pytest.approx(0.25, abs=5 * float(square.std()) / math.sqrt(n))
    raw = x.double() * math.sqrt(variance) / 0.5 + mean
    column, row = raw[:, 0].floor().long(), 1 - raw[:, 1].floor().long()  # the first row is at the top
    counts = torch.zeros(2, 3).index_put_((row, column), torch.ones(n), accumulate=True)
    assert (counts / n - pixels / 8).abs().max() <= 5 * math.sqrt(0.25 / n)
    inside = raw - raw.floor()
    assert (inside.mean(0) - 0.5).abs().max() <= 5 * math.sqrt(1 / 12 / n)
    assert torch.equal(Drawing(4 - pixels, dark_is_likely=True).pixels, drawing.pixels)
    assert drawing.dataset(100).draw is not None
    for bad in (torch.zeros(3, 3), torch.tensor([[1.0, -1.0]]), torch.tensor([1.0]), torch.tensor([[math.nan]])):
        with pytest.raises(BadValue):
            Drawing(bad)


def take(loader: Loader, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(b.x0, b.labels) for b in itertools.islice(loader, n)]


def same(a, b) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def _wobble(x, g):
    return x + torch.randn(x.shape, generator=g)


@pytest.mark.parametrize("fresh", [False, True])
def test_loader_resumes_bit_for_bit(fresh):
    data = toy_dataset("rings", n=50)
    options = {"seed": 3, "augment": _wobble, "fresh": fresh}
    whole = take(Loader(data, 16, **options), 9)
    first = Loader(data, 16, **options)
    head = take(first, 4)
    second = Loader(data, 16, **options)
    second.load_state_dict(first.state_dict())
    assert same(head + take(second, 5), whole)
    assert same([(b.x0, b.labels) for b in itertools.islice(first.start(7), 2)], whole[7:])
    assert not same(take(Loader(data, 16, seed=4), 1), take(Loader(data, 16, seed=3), 1))
    with pytest.raises(BadValue, match="cannot resume"):
        Loader(data, 8, seed=3).load_state_dict(first.state_dict())


def test_loader_sees_every_sample_once_an_epoch():
    data = toy_dataset("moons", n=50)
    stream = torch.cat(
        [x for x, _ in take(Loader(data, 20, seed=1), 5)]
    )  # 100 draws: two epochs, the third batch mixed
    rows = [tuple(r) for r in data.x.tolist()]
    for epoch in (stream[:50], stream[50:]):
        assert sorted(tuple(r) for r in epoch.tolist()) == sorted(rows)
    assert not torch.equal(stream[:50], stream[50:])


@pytest.mark.parametrize("fresh", [False, True])
def test_shards_partition_the_batch(fresh):
    data = toy_dataset("moons", n=37)
    whole = take(Loader(data, 12, fresh=fresh), 5)
    shards = [take(Loader(data, 12, rank=r, world=3, fresh=fresh), 5) for r in range(3)]
    for i, (x, labels) in enumerate(whole):
        for r in range(3):
            assert torch.equal(shards[r][i][0], x[r::3]) and torch.equal(shards[r][i][1], labels[r::3])


def test_loader_refuses_impossible_requests():
    with pytest.raises(BadValue, match="finite"):
        Loader(digits_dataset(), 10, fresh=True)
    with pytest.raises(BadValue, match="multiple of world"):
        Loader(digits_dataset(), 10, world=3)
    batch = Loader(digits_dataset(), 10).batch(0)
    assert len(batch) == 10 and [len(b) for b in batch.chunk(2)] == [5, 5]
    with pytest.raises(BadValue, match="divisor"):
        batch.chunk(3)


def test_a_dataset_checks_its_parts():
    x = torch.zeros(3, 2)
    for bad in (
        {"x": torch.zeros(0, 2)},
        {"x": x, "labels": torch.zeros(3, dtype=torch.int64)},
        {"x": x, "labels": torch.tensor([0, 1, 2]), "n_classes": 2},
        {"x": torch.full((2, 2), math.inf)},
    ):
        with pytest.raises(BadValue):
            Dataset("bad", **bad)
