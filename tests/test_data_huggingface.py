"""Folders of Hugging Face datasets: layouts written by hand from their description, and by the package itself where it is installed."""

from __future__ import annotations

import io
import json
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_files import pixels_of, png

from explorer.data import Loader, load_dataset
from explorer.data import gathered as gathering
from explorer.data.huggingface import huggingface
from explorer.errors import BadFile, BadValue, MissingExtra

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

RNG = np.random.default_rng(0)
NAMES = ["cat", "dog", "emu"]
FEATURES = {"img": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(images: np.ndarray, labels, features=FEATURES):
    """A table as that package lays it out: pictures as encoded files, its own description in the schema."""
    files = [{"bytes": png(image), "path": None} for image in images]
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("img", ENCODED), ("label", pa.int64())], metadata=meta)
    return pa.table({"img": pa.array(files, ENCODED), "label": pa.array(labels, pa.int64())}, schema=schema)


def stream(table, file):
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def saved(folder, parts):
    """What `DatasetDict.save_to_disk` leaves: a folder per split with arrow streams, and what lists them."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    for part, (images, labels) in parts.items():
        (folder / part).mkdir()
        half, names = len(images) // 2, [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
        stream(rows(images[:half], labels[:half]), folder / part / names[0])
        stream(rows(images[half:], labels[half:]), folder / part / names[1])
        (folder / part / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
        state = {"_data_files": [{"filename": name} for name in names], "_split": part, "_format_columns": None}
        (folder / part / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture(name="images")
def _images():
    return RNG.integers(0, 256, (31, 8, 8, 3), dtype=np.uint8)


LABELS = [i % 3 for i in range(31)]


def test_what_save_to_disk_leaves(tmp_path, images):
    folder = saved(tmp_path / "pets", {"train": (images, LABELS), "validation": (images[:5], LABELS[:5])})
    train, test = huggingface(folder), load_dataset(str(folder), "test")
    assert np.array_equal(pixels_of(train), images) and np.array_equal(pixels_of(test), images[:5])
    assert train.labels.tolist() == LABELS and train.n_classes == test.n_classes == 3
    assert train.card["classes"] == NAMES and train.card["columns"] == {"image": "img", "label": "label"}
    assert (test.name, test.card["part"], train.card["layout"]) == ("pets-test", "validation", "save_to_disk")
    one = huggingface(folder / "train")  # Dataset.save_to_disk, without the dictionary
    assert one.checksum == train.checksum
    with pytest.raises(BadValue, match="no test split; it has train"):
        huggingface(folder / "train", "test")
    assert load_dataset(str(folder / "train/data-00001-of-00002.arrow")).labels.tolist() == LABELS[15:]


def test_parquet_as_on_the_hub(tmp_path, images):
    home = tmp_path / "hub" / "data"
    home.mkdir(parents=True)
    for i, part in enumerate(np.array_split(np.arange(31), 3)):
        table = rows(images[part], np.asarray(LABELS)[part])
        pq.write_table(table, home / f"train-0000{i}-of-00003-0a1b2c.parquet", row_group_size=4)
    pq.write_table(rows(images[:4], [-1] * 4), home / "test-00000-of-00001.parquet")
    train, test = load_dataset(str(tmp_path / "hub")), huggingface(tmp_path / "hub", "test")
    assert np.array_equal(pixels_of(train), images) and train.labels.tolist() == LABELS
    assert test.labels is None and len(test) == 4  # -1 throughout: the answers are kept secret
    assert load_dataset(str(home / "test-00000-of-00001.parquet")).checksum == test.checksum
    (tmp_path / "hub/other").mkdir()
    pq.write_table(rows(images, LABELS), tmp_path / "hub/other/train-00000-of-00001.parquet")
    with pytest.raises(BadFile, match=r"several folders \(data, other\)"):
        huggingface(tmp_path / "hub")


def test_pictures_in_folders_by_split(tmp_path, images):
    for part, n in (("train", 6), ("test", 3)):
        for i in range(n):
            home = tmp_path / "pets" / part / NAMES[i % 3]
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(home / f"{i}.png")
    train, test = load_dataset(str(tmp_path / "pets")), load_dataset(str(tmp_path / "pets"), "test")
    assert (len(train), len(test), train.n_classes) == (6, 3, 3) and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(pixels_of(test), images[:3])
    with pytest.raises(BadValue, match="no columns"):
        huggingface(tmp_path / "pets", label="label")


def test_arrays_words_and_columns_of_choice(tmp_path, images):
    grey = images[:6, :, :, 0]
    planes = images[:6].transpose(0, 3, 1, 2)
    table = pa.table({
        "grey": pa.array(grey.tolist(), pa.list_(pa.list_(pa.uint8()))),
        "planes": pa.array(planes.tolist(), pa.list_(pa.list_(pa.list_(pa.int32())))),
        "word": ["b", "a", "c", "a", "b", "c"],
        "score": [0.5] * 6,
    })  # fmt: skip
    pq.write_table(table, file := tmp_path / "t.parquet")
    with pytest.raises(BadValue, match=r"several columns of pictures \(grey, planes\)"):
        huggingface(file)
    assert np.array_equal(pixels_of(huggingface(file, image="grey"))[..., 0], grey)
    data = huggingface(file, image="planes", label="word")
    assert np.array_equal(pixels_of(data), images[:6])
    assert data.labels.tolist() == [1, 0, 2, 0, 1, 2] and data.card["classes"] == ["a", "b", "c"]
    for column, message in (("score", "none of classes|where a class was expected"), ("gone", "no column 'gone'")):
        with pytest.raises((BadFile, BadValue), match=message):
            huggingface(file, image="grey", label=column)
    with pytest.raises(BadValue, match="no pictures"):
        huggingface(file, image="word")
    wide = table.set_column(1, "planes", pa.array((planes.astype(int) + 200).tolist()))
    pq.write_table(wide, file)
    with pytest.raises(BadFile, match=r"whole numbers 0\.\.255"):
        huggingface(file, image="planes")


def test_a_large_set_is_collected_once_and_mapped_and_shared_out(tmp_path, images, monkeypatch):
    folder = saved(tmp_path / "pets", {"train": (images, LABELS)})
    small = huggingface(folder)
    monkeypatch.setattr(gathering, "FLOAT_BYTES", 1000)
    monkeypatch.setattr("explorer.data.batches.FLOAT_BYTES", 1000)
    monkeypatch.setattr(gathering, "PART", 8)
    monkeypatch.setenv("EXPLORER_CACHE", str(tmp_path / "cache"))
    big = load_dataset(str(folder))
    assert big.x.dtype == torch.uint8 and torch.equal(big.take(slice(None)), small.x)
    [kept] = (tmp_path / "cache").iterdir()
    stamp = (kept / "pixels.bin").stat().st_mtime_ns
    assert load_dataset(str(folder)).checksum == big.checksum
    assert (kept / "pixels.bin").stat().st_mtime_ns == stamp
    whole = Loader(big, 12, seed=3).batch(4)
    shares = [Loader(big, 12, seed=3, rank=r, world=3).batch(4) for r in range(3)]
    for r, share in enumerate(shares):
        assert torch.equal(share.x0, whole.x0[r::3]) and torch.equal(share.labels, whole.labels[r::3])
    stream(rows(images[::-1][:15], LABELS[:15]), folder / "train/data-00000-of-00002.arrow")
    assert np.array_equal(pixels_of(load_dataset(str(folder)))[:15], images[::-1][:15])  # collected anew
    (kept / "pixels.bin").write_bytes(b"cut short")
    assert len(load_dataset(str(folder))) == 31


def wrong(name: str, folder, images):
    """Break a folder in one way."""
    state, data = folder / "train/state.json", folder / "train/data-00000-of-00002.arrow"
    match name:
        case "gone":
            data.unlink()
        case "half":
            data.write_bytes(data.read_bytes()[:700])
        case "leads out":
            state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
        case "no list":
            state.write_text("[]")
        case "not json":
            (folder / "dataset_dict.json").write_text("{splits")
        case "split leads out":
            (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../train"]}))
        case "selection":
            state.write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}))
        case "sizes":
            table = rows(images[:15], LABELS[:15]).to_pydict()
            table["img"][3] = {"bytes": png(images[0][:4]), "path": None}
            stream(pa.table({"img": pa.array(table["img"], ENCODED), "label": table["label"]}), data)
        case "elsewhere":
            stream(pa.table({"img": pa.array([{"bytes": None, "path": "/etc/a.png"}], ENCODED), "label": [0]}), data)
        case "class":
            stream(rows(images[:2], [0, 3]), data)
        case "null":
            stream(rows(images[:2], [0, None]), data)
        case "columns":
            stream(rows(images[:2], [0, 1]).rename_columns(["img", "answer"]), data)
        case "empty":
            for file in folder.glob("train/*.arrow"):
                stream(rows(images[:0], []), file)
        case "no picture":
            stream(pa.table({"img": pa.array([{"bytes": b"GIF89a", "path": None}], ENCODED), "label": [0]}), data)
    return folder


WRONG = {
    "gone": "lacks data-00000", "half": "not a readable table|none of|no columns", "leads out": "must list the arrow files",
    "no list": "holds a list", "not json": "cannot be read", "split leads out": "names of its splits",
    "selection": "selection of rows", "sizes": "resize them first", "elsewhere": "names a picture elsewhere",
    "class": "label 3 in column 'label' is none of its 3", "null": "None", "columns": "other columns", "empty": "holds no rows",
    "no picture": "cannot be read as a picture",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_explained(name, tmp_path, images):
    folder = saved(tmp_path / "pets", {"train": (images, LABELS)})
    with pytest.raises(BadFile, match=WRONG[name]):
        huggingface(wrong(name, folder, images))
    with pytest.raises(BadFile, match="there is no"):
        huggingface(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(BadFile, match="no folder of Hugging Face"):
        huggingface(tmp_path / "plain")


def test_damaged_tables_give_a_sentence_or_the_data(tmp_path, images):
    """Bytes changed and cut anywhere: never anything but our own errors, and never a picture of another shape."""
    stream(rows(images[:6], LABELS[:6]), tmp_path / "a.arrow")
    pq.write_table(rows(images[:6], LABELS[:6]), tmp_path / "a.parquet")
    seen = {True: 0, False: 0}
    for ending in ("arrow", "parquet"):
        whole, draw = (tmp_path / f"a.{ending}").read_bytes(), random.Random(0)
        for _ in range(150):
            raw = bytearray(whole)
            for _ in range(draw.randrange(1, 4)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            bad = tmp_path / f"b.{ending}"
            bad.write_bytes(raw[: draw.randrange(len(raw))] if draw.random() < 0.3 else raw)
            try:
                data = huggingface(bad)
            except (BadFile, BadValue) as error:
                assert len(str(error)) < 400
                seen[False] += 1
            else:
                assert data.shape[0] in (1, 3)
                seen[True] += 1
    assert min(seen.values()) > 20


def test_without_pyarrow_one_sentence_says_so(tmp_path, images, monkeypatch):
    folder = saved(tmp_path / "pets", {"train": (images, LABELS)})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"needs pyarrow, .* 'trajectory-explorer\[hub\]'"):
        load_dataset(str(folder))


@pytest.mark.parity
def test_what_the_package_itself_writes(tmp_path, images):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES),
                                  "grid": datasets.Array2D((8, 8), "uint8")})  # fmt: skip
    encoded = []
    for image in images:
        Image.fromarray(image).save(out := io.BytesIO(), "png")
        encoded.append({"bytes": out.getvalue(), "path": None})
    content = {"image": encoded, "label": LABELS, "grid": list(images[..., 0])}
    both = datasets.DatasetDict(
        {part: datasets.Dataset.from_dict(content, features=features) for part in ("train", "test")}
    )
    both.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    (tmp_path / "hub").mkdir()
    for part, one in both.items():
        one.to_parquet(tmp_path / "hub" / f"{part}-00000-of-00001.parquet")
    both["train"].select([4, 1, 2]).save_to_disk(tmp_path / "chosen")
    for folder in ("saved", "hub"):
        for part in ("train", "test"):
            data = huggingface(tmp_path / folder, part, image="image")
            assert np.array_equal(pixels_of(data), images) and data.labels.tolist() == LABELS
            assert data.card["classes"] == NAMES
        grid = huggingface(tmp_path / folder, image="grid")
        assert np.array_equal(pixels_of(grid)[..., 0], images[..., 0])
    assert np.array_equal(pixels_of(huggingface(tmp_path / "chosen", image="image")), images[[4, 1, 2]])
