"""Published statistics files: the layouts as others write them, round trips, and every way they can be wrong."""

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.errors import BadFile
from explorer.metrics import Moments, Reference, frechet_distance, protocol, read_statistics, write_statistics
from explorer.metrics.features import FeatureSpace
from explorer.metrics.inception import random_weights

DIM = 6
SPACE = FeatureSpace("net/tf1", DIM, lambda x: x.flatten(1)[:, :DIM], "abc")


def edm(x):
    """mu and sigma as EDM's fid.py adds them up: raw sums, then the mean taken off."""
    n = len(x)
    mu = x.sum(0) / n
    return {"mu": mu, "sigma": (x.T @ x - np.outer(mu, mu) * n) / (n - 1)}


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(400, DIM)) @ np.random.default_rng(1).normal(size=(DIM, DIM)) + 3


def test_edms_file_is_the_reference_of_its_features(features, tmp_path):
    np.savez(tmp_path / "ref.npz", **edm(features))
    read = read_statistics(tmp_path / "ref.npz", SPACE, data="cifar10")
    ours = Moments.of(features)
    # raw sums of squares lose the digits of the squared mean: 1e-16 * 400 * 9 / 399
    np.testing.assert_allclose(read.cov, ours.cov, atol=1e-12)
    np.testing.assert_allclose(read.mean, ours.mean, atol=1e-13)
    assert (read.features, read.hash, read.n, read.data) == ("net/tf1", "abc", 0, "cifar10")
    assert frechet_distance(ours.mean, ours.cov, read.mean, read.root) < 1e-10


def test_what_is_written_is_edms_layout_and_says_what_it_is(features, tmp_path):
    moments = Moments.of(features)
    reference = Reference("net/tf1", "abc", 400, moments.mean, moments.cov, "toy/train")
    write_statistics(tmp_path / "own.npz", reference)
    with np.load(tmp_path / "own.npz") as stored:  # as EDM and pytorch-fid read it
        assert stored["mu"].dtype == stored["sigma"].dtype == np.float64
        np.testing.assert_array_equal(stored["sigma"], moments.cov)
    again = read_statistics(tmp_path / "own.npz", SPACE)
    assert again.digest == reference.digest and again.data == "toy/train" and again.n == 400
    reference.save(tmp_path / "saved.npz")
    assert read_statistics(tmp_path / "saved.npz", SPACE).digest == reference.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.npz", "saved.npz"]


@pytest.mark.parametrize("kind", ["own", "saved"])
def test_another_space_or_other_weights_are_refused(features, tmp_path, kind):
    moments = Moments.of(features)
    reference = Reference("net/tf1", "abc", 400, moments.mean, moments.cov)
    file = tmp_path / "ref.npz"
    write_statistics(file, reference) if kind == "own" else reference.save(file)
    with pytest.raises(BadFile, match="made in features 'net/tf1'.*same protocol"):
        read_statistics(file, FeatureSpace("net/clean", DIM, SPACE.fn, "abc"))
    with pytest.raises(BadFile, match="same space with other weights"):
        read_statistics(file, FeatureSpace("net/tf1", DIM, SPACE.fn, "abd"))
    with pytest.raises(BadFile, match="6 features|D=6"):
        read_statistics(file, FeatureSpace("net/tf1", 7, SPACE.fn, "abc"))


def test_a_protocols_statistics_do_not_pass_for_another_ones(tmp_path):
    weights = random_weights(0)
    x = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    edm_space = weights.space(protocol("edm"), "64")
    write_statistics(tmp_path / "edm.npz", Reference.of(edm_space, x))
    assert read_statistics(tmp_path / "edm.npz", weights.space(protocol("guided-diffusion"), "64")).n == 4
    for name in ("pytorch-fid", "clean-fid"):
        with pytest.raises(BadFile, match="the distance would mean nothing"):
            read_statistics(tmp_path / "edm.npz", weights.space(protocol(name), "64"))


def test_guided_diffusions_file_has_spatial_statistics_too(features, tmp_path):
    pool, spatial = edm(features), edm(features * 2)
    np.savez(
        tmp_path / "ref.npz",
        arr_0=np.zeros((1, 2, 2, 3), np.uint8),
        **pool,
        mu_s=spatial["mu"],
        sigma_s=spatial["sigma"],
    )
    assert np.array_equal(read_statistics(tmp_path / "ref.npz", SPACE).cov, pool["sigma"])
    other = FeatureSpace("net/tf1#spatial", DIM, SPACE.fn, "abc")
    assert np.array_equal(read_statistics(tmp_path / "ref.npz", other).cov, spatial["sigma"])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch_of_pictures_is_measured_in_pieces(tmp_path, compressed):
    pictures = np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3), dtype=np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "batch.npz", pictures, np.arange(150))
    sizes = []

    def fn(x):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 4, 4)
        sizes.append(len(x))
        return x.flatten(1)[:, :DIM].double()

    read = read_statistics(tmp_path / "batch.npz", FeatureSpace("net", DIM, fn, ""))
    expected = pictures.transpose(0, 3, 1, 2).reshape(150, -1)[:, :DIM]
    np.testing.assert_allclose(read.cov, np.cov(expected.T), rtol=1e-12)
    assert read.n == 150 and read.data == "batch" and max(sizes) <= 64


BAD = {
    "nan": (lambda a: a["sigma"].__setitem__((1, 2), np.nan), "NaN or infinity"),
    "nan in mu": (lambda a: a["mu"].__setitem__(1, np.nan), "do not fit"),
    "skewed": (lambda a: a["sigma"].__setitem__((0, 1), 50.0), "not symmetric"),
    "negative": (lambda a: a["sigma"].__isub__(3 * np.eye(DIM)), "not positive semi-definite"),
    "constant": (lambda a: a["sigma"].fill(0.0), "no positive trace"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_covariance_that_is_none_is_named(features, tmp_path, kind):
    change, words = BAD[kind]
    arrays = edm(features)
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadFile, match=f"bad.npz.*{words}"):
        read_statistics(tmp_path / "bad.npz", SPACE)


def header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_files_that_are_no_statistics_are_refused_with_the_reason(features, tmp_path):
    arrays, path = edm(features), tmp_path / "file.npz"

    def refused(words):
        with pytest.raises(BadFile, match=words):
            read_statistics(path, SPACE)

    refused("cannot be read")
    path.write_text("hello")
    refused("not a zip file")
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:200])
    refused("cannot be read|damaged")
    np.savez(path, mu=arrays["mu"])
    refused("lacks sigma")
    np.savez(path, weights=arrays["mu"])
    refused("holds weights; statistics are mu and sigma")
    np.savez(path, mu=arrays["mu"][:5], sigma=arrays["sigma"][:5, :5])
    refused("statistics of 5 features, but 'net/tf1' has 6")
    np.savez(path, mu=arrays["mu"], sigma=arrays["sigma"][:5])
    refused("no mean and covariance")
    np.savez(path, mu=arrays["mu"].astype(int), sigma=arrays["sigma"].astype(int))
    refused("no mean and covariance")
    np.savez(path, mu=np.array([object()], dtype=object), sigma=arrays["sigma"])
    refused("Python objects")
    np.savez(path, arr_0=np.zeros((2, 3, 4, 4), np.float32))
    refused("pictures are uint8")
    with zipfile.ZipFile(path, "w") as archive:  # a header that claims terabytes
        archive.writestr("mu.npy", header((DIM,)) + bytes(8 * DIM))
        archive.writestr("sigma.npy", header((10**6, 10**6)) + bytes(100))
    refused("claimed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header((10**6, 64, 64, 3), "|u1") + bytes(100))
    refused("more than the file holds")


GOOD = io.BytesIO()
np.savez(GOOD, **edm(np.random.default_rng(0).normal(size=(40, DIM))))


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_and_nothing_else(data, tmp_path_factory):
    raw = bytearray(GOOD.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(raw)
    try:
        read = read_statistics(path, SPACE)
    except BadFile:
        return
    assert np.isfinite(read.cov).all() and np.linalg.eigvalsh(read.cov)[-1] > 0
