"""Image sets on disk: each format written here by other means than the reader's, and files that are wrong in every known way."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch

from explorer.data import SOURCES, Dataset, Loader, array_dataset, load_dataset, pictures, write_zip
from explorer.data.batches import cifar10, imagenet, sorted_labels
from explorer.data.unpickle import read_batch
from explorer.errors import BadFile, BadValue, UnknownName

RNG = np.random.default_rng(0)


class _Python2(pickle._Pickler):
    """Strings and bytes as Python 2 wrote both of them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_old(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)

    dispatch[bytes] = dispatch[str] = save_old


def python2(value) -> bytes:
    out = io.BytesIO()
    _Python2(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def planes(images: np.ndarray) -> np.ndarray:
    """Rows of red, green and blue planes from images (N, H, W, 3), written out pixel by pixel."""
    return np.stack([np.concatenate([image[:, :, c].reshape(-1) for c in range(3)]) for image in images])


def png(image: np.ndarray) -> bytes:
    """An uncompressed PNG from its specification; image (H, W) or (H, W, 3) uint8."""
    height, width = image.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def pixels_of(data: Dataset) -> np.ndarray:
    """Back to uint8, (N, H, W, C)."""
    return ((data.take(slice(None)) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(name="images")
def _images() -> np.ndarray:
    return RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(name="cifar")
def _cifar(tmp_path, images):
    """The published folder with four images in each file, and the archive of it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(5):
        part = images[3 * i : 3 * i + 3]
        batch = {
            "batch_label": f"{i + 1} of 5",
            "labels": [i, i + 1, i + 4],
            "data": planes(part),
            "filenames": ["a"] * 3,
        }
        (folder / f"data_batch_{i + 1}").write_bytes(python2(batch))
    (folder / "test_batch").write_bytes(python2({"labels": [9, 0, 1, 2, 3], "data": planes(images[15:])}))
    (folder / "batches.meta").write_bytes(python2({"label_names": ["airplane"]}))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
    return folder, archive


def test_cifar10_from_folder_archive_and_name(cifar, images, monkeypatch):
    folder, archive = cifar
    for source in (folder, archive):
        train, test = cifar10(source), cifar10(source, "test")
        assert np.array_equal(pixels_of(train), images[:15]) and np.array_equal(pixels_of(test), images[15:])
        assert train.labels.tolist() == [k for i in range(5) for k in (i, i + 1, i + 4)]
        assert test.labels.tolist() == [9, 0, 1, 2, 3] and train.n_classes == 10
        assert (train.name, test.name, train.sigma_data) == ("cifar10", "cifar10-test", 0.5)
        assert load_dataset(str(source), "test").checksum == test.checksum
    monkeypatch.setenv("EXPLORER_DATA", str(folder.parent))
    assert load_dataset("cifar10").checksum == train.checksum
    assert load_dataset("cifar10", source=archive).checksum == train.checksum
    monkeypatch.setenv("EXPLORER_DATA", str(folder))
    assert load_dataset("cifar10").checksum == train.checksum


def test_what_to_do_when_a_set_is_absent(tmp_path, monkeypatch):
    monkeypatch.delenv("EXPLORER_DATA", raising=False)
    for name in SOURCES:
        with pytest.raises(BadFile, match="set EXPLORER_DATA to that folder"):
            load_dataset(name)
    monkeypatch.setenv("EXPLORER_DATA", str(tmp_path))
    with pytest.raises(BadFile, match="holds none of cifar-10-batches-py"):
        load_dataset("cifar10")
    with pytest.raises(BadFile, match="there is no"):
        load_dataset("cifar10", source=tmp_path / "gone")
    with pytest.raises(UnknownName, match="cifar10"):
        load_dataset("cifar-10")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol):
    value = {
        "data": np.arange(24, dtype=np.uint8).reshape(2, 12),
        "mean": np.linspace(0, 1, 5),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "labels": [1, np.int64(2)],
        "name": "x",
    }
    for raw in (pickle.dumps(value, protocol), *([python2(value)] if protocol == 2 else [])):
        back = read_batch(io.BytesIO(raw), "batch")
        assert list(back) == list(value)
        for key in list(value)[:4]:
            assert np.array_equal(back[key], value[key]) and back[key].dtype == value[key].dtype
        assert [int(v) for v in back["labels"]] == [1, 2]


class _Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _set_attributes() -> bytes:
    """GLOBAL, then BUILD with a slot state: writes an attribute of whatever the global is."""
    return b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x04makeU\x01xs\x86b."


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (lambda f: pickle.dumps(_Call(os.system, f"touch {f}")), "asks to run posix.system"),
        (lambda f: pickle.dumps({"data": _Call(eval, f"open({str(f)!r}, 'w')")}), "asks to run builtins.eval"),
        (lambda f: pickle.dumps(_Call(open, str(f), "w")), "asks to run io.open|asks to run _io.open"),
        (
            lambda f: pickle.dumps({"data": np.array([_Call(os.system, f"touch {f}")], dtype=object)}),
            "asks to run|numbers",
        ),
        (lambda f: pickle.dumps({"data": np.array([[1], "a"], dtype=object)}), "only numbers are read"),
        (lambda f: pickle.dumps(_Call(np.load, str(f))), "asks to run numpy"),
        (lambda f: pickle.dumps([1, 2]), "holds a list"),
        (lambda f: pickle.dumps({"a": [[[[[[1]]]]]]}), "four levels"),
        (lambda f: _set_attributes(), "not a readable|holds a"),
        (lambda f: b"", "not a readable pickled batch"),
        (lambda f: b"<html>not found</html>", "not a readable pickled batch"),
    ],
)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, hostile, message):
    witness = tmp_path / "ran"
    with pytest.raises(BadFile, match=message):
        read_batch(io.BytesIO(hostile(witness)), "batch")
    assert not witness.exists()
    value = {"data": np.arange(3)}  # the reader is as it was
    assert np.array_equal(read_batch(io.BytesIO(pickle.dumps(value)), "batch")["data"], value["data"])


def test_an_array_larger_than_its_bytes_is_refused_without_being_made():
    raw = pickle.dumps({"data": np.zeros(7, np.uint8)}, 2)
    assert raw.count(b"K\x07\x85") == 1  # the shape (7,)
    huge = raw.replace(b"K\x07\x85", b"\x8a\x06" + (2**45).to_bytes(6, "little") + b"\x85")
    with pytest.raises(BadFile, match="cannot reshape"):
        read_batch(io.BytesIO(huge), "batch")
    shared = [0]
    for _ in range(3):
        shared = [shared] * 1000  # a thousand million paths to one number
    assert read_batch(io.BytesIO(pickle.dumps({"labels": shared})), "batch")["labels"][5][6][7] == [0]


def test_damaged_pickles_give_a_sentence_or_the_data():
    """Cut at and flipped in random places: BadFile or a dictionary, never anything else."""
    whole = python2({"data": planes(RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)), "labels": [1, 2]})
    rng = random.Random(0)
    n_bad = 0
    for i in range(1500):
        raw = bytearray(whole[: rng.randrange(len(whole))] if i % 3 == 0 else whole)
        for _ in range(rng.randrange(4)):
            if raw:
                raw[rng.randrange(min(len(raw), 400))] = rng.randrange(256)
        try:
            assert isinstance(read_batch(io.BytesIO(bytes(raw)), "batch"), dict)
        except BadFile:
            n_bad += 1
    assert n_bad > 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "data_batch_3").unlink(), "holds no data_batch_3"),
        (lambda f: (f / "data_batch_3").write_bytes((f / "data_batch_3").read_bytes()[:2000]), "not a readable"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [1]})), "expected 'data'"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [1, 10], "data": np.zeros((2, 3072), np.uint8)})), "lie in 1..10"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [1], "data": np.zeros((2, 3072), np.uint8)})), "1,.* labels for 2"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [0.5], "data": np.zeros((1, 3072), np.uint8)})), "whole numbers"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [1], "data": np.zeros((1, 3000), np.uint8)})), "no square"),
        (lambda f: (f / "data_batch_3").write_bytes(python2({"labels": [1], "data": np.zeros((1, 3072), np.float32)})), "uint8"),
    ],
)  # fmt: skip
def test_wrong_cifar_batches_are_explained(cifar, change, message):
    change(cifar[0])
    with pytest.raises(BadFile, match=message):
        cifar10(cifar[0])


def test_a_half_downloaded_archive_is_explained(cifar, tmp_path):
    half = tmp_path / "half.tar.gz"
    half.write_bytes(cifar[1].read_bytes()[:5000])
    with pytest.raises(BadFile, match="half downloaded"):
        cifar10(half)
    half.write_bytes(b"no archive at all")
    with pytest.raises(BadFile, match="not a readable tar"):
        cifar10(half)


@pytest.mark.parametrize("kind", ["pickle", "npz"])
@pytest.mark.parametrize("side", [8, 16])
def test_downsampled_imagenet(tmp_path, kind, side):
    folder = tmp_path / "Imagenet"
    folder.mkdir()
    images, labels = RNG.integers(0, 256, (23, side, side, 3), dtype=np.uint8), RNG.integers(1, 1001, 23)
    labels[:2] = 1, 1000
    mean = planes(images).mean(0)
    for i in range(10):  # nine of two and the rest, as the published script divides
        rows = slice(2 * i, 2 * i + 2 if i < 9 else None)
        batch = {"data": planes(images[rows]), "labels": labels[rows].tolist(), "mean": mean}
        if kind == "pickle":
            (folder / f"train_data_batch_{i + 1}").write_bytes(pickle.dumps(batch))
        else:
            np.savez(folder / f"train_data_batch_{i + 1}.npz", **batch)
    val = {"data": planes(images[:3]), "labels": [5, 6, 7]}  # no mean
    (folder / "val_data").write_bytes(pickle.dumps(val))
    train, test = imagenet(folder), imagenet(folder, "test")
    assert np.array_equal(pixels_of(train), images) and np.array_equal(pixels_of(test), images[:3])
    assert torch.equal(train.labels, torch.from_numpy(labels) - 1) and test.labels.tolist() == [4, 5, 6]
    assert train.n_classes == 1000 and train.card["label_space"] == "devkit" and "squashed" in train.card["variant"]
    assert load_dataset(str(folder)).checksum == train.checksum

    mapped = imagenet(folder, side=side, cache=tmp_path / "cache")
    assert torch.equal(mapped.take(torch.arange(23)), train.x) and torch.equal(mapped.labels, train.labels)
    stamp = (tmp_path / "cache" / "pixels.bin").stat().st_mtime_ns
    imagenet(folder, cache=tmp_path / "cache")
    assert (tmp_path / "cache" / "pixels.bin").stat().st_mtime_ns == stamp  # found again, not gathered again
    if kind == "pickle":
        changed = {"data": planes(images[:2]), "labels": [3, 4]}
        (folder / "train_data_batch_1").write_bytes(pickle.dumps(changed))
        assert imagenet(folder, cache=tmp_path / "cache").labels[:2].tolist() == [2, 3]
        (folder / "train_data_batch_4").unlink()
        with pytest.raises(BadFile, match="without gaps"):
            imagenet(folder)
        with pytest.raises(BadFile, match="16 pixels a side where|8 pixels a side where"):
            imagenet(folder, "test", side=24 - side)
    with pytest.raises(BadFile, match="holds no train_data_batch_1"):
        imagenet(tmp_path)


def test_labels_of_the_development_kit_become_alphabetical():
    kit = ["n02119789", "n02100735", "n02110185", "n01440764"]  # kit fox first, tench last; tench is 0 alphabetically
    assert sorted_labels(torch.tensor([0, 1, 2, 3, 0]), kit).tolist() == [3, 1, 2, 0, 3]
    with pytest.raises(BadValue, match="0..3"):
        sorted_labels(torch.tensor([4]), kit)
    with pytest.raises(BadValue, match="synsets"):
        sorted_labels(torch.tensor([0]), ["fox", "dog"])


def edm_zip(file, images, labels="absent", *, method=zipfile.ZIP_STORED, order=None):
    """EDM's layout: stored PNGs in folders of the first five digits, dataset.json at the root."""
    names = [f"{i:08d}"[:5] + f"/img{i:08d}.png" for i in range(len(images))]
    with zipfile.ZipFile(file, "w", method) as archive:
        for i in order or range(len(images)):
            archive.writestr(names[i], png(images[i]))
        if labels != "absent":
            table = None if labels is None else [[n, k] for n, k in zip(names, labels, strict=True)]
            archive.writestr("dataset.json", json.dumps({"labels": table}))
    return names


def test_edm_zips(tmp_path, images, monkeypatch):
    file, labels = tmp_path / "cifar10-32x32.zip", [int(k) for k in RNG.integers(0, 10, 20)]
    labels[3] = 9
    edm_zip(file, images, labels, order=[*range(10, 20), *range(10)])
    data = pictures(file)
    assert np.array_equal(pixels_of(data), images) and data.labels.tolist() == labels and data.n_classes == 10
    assert data.card["label_space"] == "dataset.json"
    monkeypatch.setenv("EXPLORER_DATA", str(tmp_path))
    named = load_dataset("cifar10")
    assert named.checksum == data.checksum and named.name == "cifar10"
    with pytest.raises(BadValue, match="no test split"):
        load_dataset("cifar10", "test")
    edm_zip(file, images, None)
    assert pictures(file).labels is None and pictures(file).n_classes == 0
    edm_zip(file, images[:, :, :, 0], "absent", method=zipfile.ZIP_DEFLATED)
    grey = load_dataset(str(file))
    assert grey.shape == (1, 32, 32) and np.array_equal(pixels_of(grey)[..., 0], images[..., 0])
    with pytest.raises(BadFile, match="cifar10 has"):
        load_dataset("cifar10")


def test_a_folder_reads_like_a_zip_and_folders_are_classes(tmp_path, images):
    for i, image in enumerate(images[:6]):
        place = tmp_path / "set" / ("dog", "cat")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(png(image))
    data = pictures(tmp_path / "set")
    assert np.array_equal(pixels_of(data), images[[1, 3, 5, 0, 2, 4]])  # sorted names: cats first
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.card["label_space"] == "sorted folders"
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes(png(images[0]))
    assert pictures(flat).labels is None


def test_what_we_write_in_this_format_the_reader_and_pillow_read(tmp_path, images):
    from PIL import Image

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    file = write_zip(tmp_path / "out.zip", pixels, torch.arange(20) % 4)
    data = pictures(file)
    assert np.array_equal(pixels_of(data), images) and data.labels.tolist() == [i % 4 for i in range(20)]
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist()[7] == "00000/img00000007.png"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert np.array_equal(np.asarray(Image.open(archive.open("00000/img00000007.png"))), images[7])


def test_fits(tmp_path):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200  # the centred square
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(wide))
    crop, squash = (pixels_of(pictures(folder, side=8, fit=fit))[0] for fit in ("centre-crop", "squash"))
    assert (crop == 200).all()
    assert (squash[:, 0] == 0).all() and (squash[:, 3:5] > 190).all()
    with pytest.raises(BadFile, match="32 x 16 pixels, not 8 x 8"):
        pictures(folder, side=8)
    with pytest.raises(BadValue, match="unknown fit"):
        pictures(folder, side=8, fit="stretch")


def _zip_with(file, content: dict[str, bytes | str], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def _palette(transparent: bool) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").convert("P")
    out = io.BytesIO()
    image.save(out, "png", **({"transparency": 3} if transparent else {}))
    return out.getvalue()


EIGHT, NINE = png(np.zeros((8, 8, 3), np.uint8)), png(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"readme.txt": "no pictures"}, "holds no pictures"),
        ({"a.png": EIGHT, "b.png": NINE}, "b.png is 9 x 9 in colour where a.png is 8 x 8"),
        ({"a.png": EIGHT, "b.png": png(np.zeros((8, 8), np.uint8))}, "8 x 8 in grey where a.png is 8 x 8 in colour"),
        ({"a.png": EIGHT[:60]}, "a.png cannot be read"),
        ({"a.png": b"GIF89a"}, "a.png cannot be read"),
        ({"../a.png": EIGHT}, "leads out of it"),
        ({"/etc/a.png": EIGHT}, "leads out of it"),
        ({"a.png": EIGHT, "dataset.json": "{"}, "dataset.json must hold"),
        ({"a.png": EIGHT, "dataset.json": "[" * 100_000}, "dataset.json must hold"),
        ({"a.png": EIGHT, "dataset.json": '{"labels": [["b.png", 0]]}'}, "no label for a.png"),
        ({"a.png": EIGHT, "dataset.json": '{"labels": [["a.png", -1]]}'}, "whole numbers from 0"),
        ({"a.png": EIGHT, "dataset.json": '{"labels": [["a.png", [0.5, 1.0]]]}'}, "whole numbers from 0"),
        ({"a.png": EIGHT, "dataset.json": '{"labels": [["a.png", true]]}'}, "whole numbers from 0"),
        ({"a.png": _palette(True)}, "partly transparent"),
        ({"a.png": struct.pack(">8s", b"\x89PNG\r\n\x1a\n") + EIGHT[8:16] + struct.pack(">II", 40000, 40000) + EIGHT[24:]}, "a.png"),
    ],
)  # fmt: skip
def test_wrong_zips_are_explained(tmp_path, content, message):
    _zip_with(tmp_path / "bad.zip", content)
    with pytest.raises(BadFile, match=message):
        pictures(tmp_path / "bad.zip")


def test_palettes_are_colours_and_bombs_are_refused(tmp_path):
    _zip_with(tmp_path / "p.zip", {"a.png": _palette(False)})
    assert pictures(tmp_path / "p.zip").shape == (3, 8, 8)
    _zip_with(tmp_path / "bomb.zip", {"a.png": b"\0" * (65 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.zip").stat().st_size < 200_000
    with pytest.raises(BadFile, match="claims 68157440 bytes"):
        pictures(tmp_path / "bomb.zip")
    with pytest.raises(BadFile, match="there is no"):
        pictures(tmp_path / "missing.zip")


def test_damaged_zips_give_a_sentence(tmp_path, images):
    file = tmp_path / "z.zip"
    edm_zip(file, images[:2, :8, :8], [0, 1])
    whole, rng, n_bad = file.read_bytes(), random.Random(1), 0
    for i in range(300):
        raw = bytearray(whole[: rng.randrange(len(whole))] if i % 3 == 0 else whole)
        for _ in range(rng.randrange(1, 5)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        file.write_bytes(bytes(raw))
        try:
            pictures(file)
        except BadFile:
            n_bad += 1
    assert n_bad > 150


def test_arrays(tmp_path, images):
    for array in (images, images.transpose(0, 3, 1, 2)):
        assert np.array_equal(pixels_of(array_dataset(array)), images)
    floats = array_dataset(images.astype(np.float32) / 127.5 - 1, np.arange(20) % 5)
    assert floats.n_classes == 5 and floats.x.dtype == torch.float32 and floats.shape == (3, 32, 32)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(20) % 3)
    assert load_dataset(str(tmp_path / "x.npy")).shape == (3, 32, 32)
    assert load_dataset(str(tmp_path / "x.npz")).n_classes == 3
    np.savez(tmp_path / "points.npz", x=RNG.normal(size=(50, 2)))
    assert load_dataset(str(tmp_path / "points.npz")).shape == (2,)
    np.save(tmp_path / "o.npy", np.array([_Call(pytest.fail, "executed")], dtype=object))
    with pytest.raises(BadFile, match="not a readable"):
        load_dataset(str(tmp_path / "o.npy"))
    for bad, labels in ((images[0], None), (images.astype(np.int16), None), (images * 1.0, None), (images, [0.5] * 20)):
        with pytest.raises(BadValue):
            array_dataset(bad, labels)


def test_pixels_kept_as_bytes_train_like_values(images):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    kept = Dataset("kept", pixels, torch.arange(20) % 4, 4)
    values = Dataset("values", pixels.float() / 127.5 - 1, torch.arange(20) % 4, 4)
    a, b = Loader(kept, 8, seed=1).batch(3), Loader(values, 8, seed=1).batch(3)
    assert a.x0.dtype == torch.float32 and torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.x0, b.x0, rtol=0, atol=1e-6)
