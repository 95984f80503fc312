"""Stored pairs: written whole, resumed, refused when they are not what they should be, read in a fixed endless order."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from explorer.data.pairs import PairLoader, PairStore, seal_pairs, write_pairs
from explorer.errors import BadFile, BadValue
from explorer.models.base import Oracle, Preconditioned
from explorer.process.couplings import Pairs, pairs_of
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, Linear
from explorer.process.precondition import EDMPrecondition
from explorer.reproduction import Bench
from explorer.reproduction.needs import Exact, Features, Fresh
from explorer.reproduction.pairs import FIRST_SEED, Encoded, PairsOf
from explorer.reproduction.recipe import Need
from explorer.sampling import RK4, Heun, OdeSampler, Seeds, TimeGrid, sample

SHAPE = (2, 3)
ABOUT = {"whose": "nobody", "sampler": {"n": 3}}


def draw(seeds):
    return Seeds(seeds).normal(SHAPE)


def made(start: int, count: int, first_seed: int = 100) -> Pairs:
    """x0 tells the row, so that a pair that came apart is seen."""
    noise = draw(range(first_seed + start, first_seed + start + count))
    rows = torch.arange(start, start + count)
    return pairs_of(noise, noise * 0 + rows[:, None, None], rows % 4)


def store(folder: Path, n: int = 23, shard: int = 5, **kw) -> PairStore:
    write_pairs(folder, ABOUT, n, made, shape=SHAPE, first_seed=100, shard=shard, **kw)
    seal_pairs(folder)
    return PairStore.open(folder, ABOUT, draw=draw)


def test_every_row_comes_back_with_its_own_noise(tmp_path):
    pairs = store(tmp_path)
    rows = torch.tensor([22, 0, 7, 5, 4])
    batch = pairs.rows(rows)
    assert len(pairs) == 23 and pairs.shape == SHAPE and pairs.labelled
    torch.testing.assert_close(batch.x0[:, 0, 0], rows.float())
    assert torch.equal(batch.labels, rows % 4)
    assert torch.equal(batch.noise, draw([100 + i for i in rows.tolist()]).float())
    names = {f"pairs-{k:05d}.safetensors" for k in range(5)} | {"pairs.json"}
    assert {f.name for f in tmp_path.iterdir()} == names


def test_noise_above_the_kept_size_is_drawn_batch_by_batch_alike(tmp_path, monkeypatch):
    kept = store(tmp_path)
    monkeypatch.setattr("explorer.data.pairs.KEPT_BYTES", 0)
    asked = PairStore.open(tmp_path, ABOUT, draw=draw)
    rows = torch.tensor([3, 21, 8])
    assert torch.equal(asked.rows(rows).noise, kept.rows(rows).noise)


def test_stored_noise_needs_no_seeds(tmp_path):
    write_pairs(tmp_path, ABOUT, 7, made, shape=SHAPE, shard=3)
    seal_pairs(tmp_path)
    assert torch.equal(PairStore.open(tmp_path).rows([6]).noise, draw([106]).float())


def test_generation_goes_on_where_it_stopped(tmp_path):
    calls = []

    def counted(start: int, count: int) -> Pairs:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(start)
        return made(start, count)

    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path, ABOUT, 23, counted, shape=SHAPE, first_seed=100, shard=5)
    with pytest.raises(BadFile, match="unfinished.*completed"):
        PairStore.open(tmp_path, draw=draw)
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*.safetensors")}
    again = store(tmp_path)
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in before} == before
    assert calls == [0, 5]
    assert torch.equal(again.pairs().noise, PairStore.of(made(0, 23)).pairs().noise)


@pytest.mark.parametrize("half", [False, True])
def test_a_killed_process_leaves_no_half_written_shard(tmp_path, monkeypatch, half):
    """Kill -9 between shards and in the middle of writing one: whole shards remain, and only the rest is made."""
    if (child := os.fork()) == 0:

        def die(*args, **kw):
            if half:
                Path(args[1]).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        def make(start: int, count: int) -> Pairs:
            if start >= 10:
                monkeypatch.setattr("explorer.data.pairs.save_file", die) if half else die()
            return made(start, count)

        write_pairs(tmp_path, ABOUT, 23, make, shape=SHAPE, first_seed=100, shard=5)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert len(list(tmp_path.glob(".*.partial"))) == half
    assert len(store(tmp_path)) == 23 and not list(tmp_path.glob(".*"))


def test_processes_share_the_work(tmp_path):
    seen = []
    for rank in (0, 1):
        write_pairs(
            tmp_path, ABOUT, 23, lambda s, c, r=rank: seen.append((r, s)) or made(s, c),
            shape=SHAPE, first_seed=100, shard=5, rank=rank, world=2,
        )  # fmt: skip
    seal_pairs(tmp_path)
    assert seen == [(0, 0), (0, 10), (0, 20), (1, 5), (1, 15)]
    assert len(PairStore.open(tmp_path, draw=draw)) == 23


def test_other_pairs_are_refused_by_name(tmp_path):
    store(tmp_path)
    with pytest.raises(BadFile, match='whose is "nobody", not "somebody".*another folder'):
        PairStore.open(tmp_path, ABOUT | {"whose": "somebody"}, draw=draw)
    with pytest.raises(BadFile, match="n is 23, not 24"):
        write_pairs(tmp_path, ABOUT, 24, made, shape=SHAPE, first_seed=100)
    with pytest.raises(BadFile, match="first_seed is 100, not 7"):
        write_pairs(tmp_path, ABOUT, 23, made, shape=SHAPE, first_seed=7)
    with pytest.raises(BadFile, match="Make them first"):
        PairStore.open(tmp_path / "nothing")
    with pytest.raises(BadValue, match="draw="):
        PairStore.open(tmp_path)


def test_damage_is_found_and_mended_shard_by_shard(tmp_path):
    store(tmp_path)
    file = tmp_path / "pairs-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadFile, match=r"pairs-00002.safetensors is damaged: delete .* only it is made anew"):
        PairStore.open(tmp_path, draw=draw)
    file.unlink()
    with pytest.raises(BadFile, match="missing"):
        PairStore.open(tmp_path, draw=draw)
    assert len(store(tmp_path)) == 23
    (tmp_path / "pairs.json").write_text("{")
    with pytest.raises(BadFile, match="not readable"):
        PairStore.open(tmp_path, draw=draw)


def test_noise_that_the_samples_were_not_made_from_is_found(tmp_path):
    """The same seeds through another generator: what a changed way to draw noise would do to every stored pair."""
    store(tmp_path)
    with pytest.raises(BadFile, match="not what its samples were made from"):
        PairStore.open(tmp_path, draw=lambda seeds: Seeds([s + 1 for s in seeds]).normal(SHAPE))
    index = json.loads((tmp_path / "pairs.json").read_text())
    (tmp_path / "pairs.json").write_text(json.dumps(index | {"first_seed": 101}))
    with pytest.raises(BadFile, match="not what its samples were made from"):
        PairStore.open(tmp_path, draw=draw)


def test_pairs_that_are_not_finite_are_not_stored(tmp_path):
    def broken(start: int, count: int) -> Pairs:
        pairs = made(start, count)
        return pairs._replace(data=pairs.data / 0)

    with pytest.raises(BadValue, match="not finite"):
        write_pairs(tmp_path, ABOUT, 5, broken, shape=SHAPE, first_seed=100)


# the loader ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_position_and_see_every_pair_equally():
    pairs = PairStore.of(made(0, 12))
    whole = PairLoader(pairs, 8, seed=3)
    batches = [next(b) for b in [iter(whole)] for _ in range(6)]
    resumed = next(PairLoader(pairs, 8, seed=3).start(4))
    assert torch.equal(resumed.x0, batches[4].x0) and torch.equal(resumed.noise, batches[4].noise)
    counts = torch.cat([b.x0[:, 0, 0] for b in batches]).long().bincount(minlength=12)
    assert counts.tolist() == [4] * 12  # 48 rows over four epochs of 12
    for b in batches:  # pairs stay together
        assert torch.equal(b.noise, draw([100 + int(i) for i in b.x0[:, 0, 0]]).float())
    assert not torch.equal(PairLoader(pairs, 8, seed=4).batch(0).x0, batches[0].x0)


def test_ranks_share_a_batch_and_a_second_store_gives_its_share():
    first, second = PairStore.of(made(0, 12)), PairStore.of(made(50, 6, first_seed=300))
    whole = PairLoader(first, 8, seed=1, second=second, share=0.25)
    assert [int((whole.batch(i).x0 >= 50).all(-1).all(-1).sum()) for i in range(5)] == [2] * 5
    parts = [PairLoader(first, 8, seed=1, rank=r, world=2, second=second, share=0.25) for r in (0, 1)]
    rows = sorted(v for p in parts for v in p.batch(2).x0[:, 0, 0].tolist())
    assert rows == sorted(whole.batch(2).x0[:, 0, 0].tolist())
    assert {len(p.batch(2)) for p in parts} == {4}


@pytest.mark.parametrize(
    "kw", [{"batch_size": 7, "world": 2}, {"batch_size": 8, "share": 0.5}, {"batch_size": 8, "rank": 1}]
)
def test_loaders_that_make_no_sense_are_refused(kw):
    with pytest.raises(BadValue):
        PairLoader(PairStore.of(made(0, 12)), **kw)


# needs --------------------------------------------------------------------------------------------------------------


class Given(Need):
    """A model as a need."""

    def __init__(self, model):
        self.model = model

    def describe(self):
        return {"given": self.model.name}

    def make(self, bench):
        return self.model

    stand_in = make


def gaussian(labels=None, path=None) -> Oracle:
    return Oracle(GaussianMixture(torch.tensor([[1.0, -2.0], [1.0, -2.0]]), 0.5, labels=labels), path, name="gauss")


FINE = OdeSampler(Heun(), TimeGrid.karras(40, 0.002, 80.0))


def test_pairs_of_a_model_are_its_samples_on_their_own_noise_at_any_seed(tmp_path):
    need = PairsOf(Given(gaussian(torch.tensor([0, 1]))), FINE, 10)
    for seed in (0, 1):
        pairs = Bench(tmp_path, seed=seed).need(need)
        seeds = Seeds(range(FIRST_SEED + (seed << 36), FIRST_SEED + (seed << 36) + 10))
        every = pairs.pairs()
        assert torch.equal(every.noise, seeds.normal((2,)).float())
        assert torch.equal(every.data, sample(need.model.model, FINE, seeds.fresh()).float())
        assert every.labels.tolist() == seeds.labels(2).tolist()
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(Bench(None, seed=1).need(need).pairs().data, every.data)  # the same without a disk


def test_forward_pairs_are_the_data_with_codes_that_decode_to_them():
    """A Gaussian's flow in closed form: code = (x - m) * sqrt((s^2 + T^2) / (s^2 + t^2)) / T + m / T."""
    mixture = GaussianMixture(torch.zeros(1, 2), 0.5)
    finer = OdeSampler(RK4(), TimeGrid.karras(64, 0.002, 80.0))
    need = Encoded(Given(Oracle(mixture, name="gauss")), "8gaussians", finer, n=50)
    pairs = Bench(None).need(need).pairs()
    factor = ((0.25 + 80.0**2) / (0.25 + 0.002**2)) ** 0.5 / 80.0
    # 64 steps of fourth order leave some 1e-5; the codes are stored in float32
    torch.testing.assert_close(pairs.noise, pairs.data * factor, rtol=2e-4, atol=1e-6)


def test_stand_ins_have_the_shapes_of_what_they_stand_for():
    need = PairsOf(Given(gaussian(torch.tensor([0, 1]))), FINE, 10**6)
    store = Bench(None, rehearse=True).need(need)
    assert store.shape == (2,) and store.labelled


def test_an_exact_flow_and_its_data_agree():
    need = Exact(((3.0, 0.0), (-3.0, 0.0)), 0.2)
    model = Bench(None).need(need)
    assert model.path == Linear()
    batch = Fresh(need.mixture, 4096, seed=5).batch(2)
    assert torch.equal(batch.x0, next(Fresh(need.mixture, 4096, seed=5).start(2)).x0)
    assert batch.x0[:, 0].abs().mean() == pytest.approx(3.0, abs=4 * 0.2 / 64)  # 4 standard errors
    source = Fresh(need.mixture, 8, source=GaussianMixture(torch.full((1, 2), 9.0), 0.01)).batch(0)
    assert (source.noise - 9).abs().max() < 0.1


def test_feature_distance_is_one_in_the_mean_between_strangers_and_moves_with_the_image():
    distance = Bench(None).need(Features("digits-cnn"))
    from explorer.data import digits

    x, _ = digits("train")
    x = x[:256].clone().requires_grad_(True)
    assert float(distance(x, x).detach().max()) == 0
    # standardised features: independent images differ by 2 in mean square
    assert float(distance(x, x.roll(1, 0)).detach().mean()) == pytest.approx(2.0, rel=0.2)
    distance(x, x.detach().roll(1, 0)).sum().backward()
    assert float(x.grad.abs().sum()) > 0 and not distance.train().training


def test_a_network_of_another_kind_is_named():
    net = nn.Linear(2, 2)
    model = Preconditioned(net, EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.002, 80.0), name="n")
    assert PairsOf(Given(model), FINE, 4).describe()["pairs_of"] == {"given": "n"}
