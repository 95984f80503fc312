"""Inception-v3 of FID: names and sizes of the published file, every block against a straight-line reference, files that are refused."""

import hashlib
import io
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from explorer.cli.protocols import NAMES
from explorer.errors import BadFile, BadValue, MissingExtra, UnknownName
from explorer.metrics import PROTOCOLS, Frechet, Reference, feature_space, inception, pretrained, protocol
from explorer.metrics.inception import find_weights, load_inception, random_weights
from explorer.metrics.protocols import RESIZERS, Protocol, check_mixable, differences, grey_levels
from explorer.nets.inception import LAYERS, Inception, resize_tf1


@pytest.fixture(scope="module")
def weights():
    return random_weights(0)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """The random weights as the published file is written: tensors by name, none of torch's counters."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(tensors(weights.network), path)
    return path


def tensors(network):
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def pictures(n=2, side=32, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=g)


# the network


def test_names_and_sizes_are_those_of_the_published_file(weights):
    found = tensors(weights.network)
    assert len(found) == 472  # 94 convolutions with 4 tensors of normalisation each, and the last layer's two
    assert sum(name.endswith("conv.weight") for name in found) == 94
    n_bytes = 4 * sum(t.numel() for t in found.values())
    assert n_bytes == 95_541_568
    # the published file has 95 628 359 bytes: 184 more for each tensor, its name and its record in the archive
    assert 100 < (inception.N_BYTES - n_bytes) / len(found) < 300
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_1.conv.weight": (448, 1280, 1, 1),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    for name, shape in shapes.items():
        assert tuple(found[name].shape) == shape, name


class StraightLine:
    """The graph once more, convolution after convolution with the paddings written out, pooling by hand."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1, pad=(0, 0)):
        s = self.state
        x = F.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=pad)
        mean, var = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        scale = s[f"{name}.bn.weight"] / (var + 0.001).sqrt()
        return ((x - mean[:, None, None]) * scale[:, None, None] + s[f"{name}.bn.bias"][:, None, None]).clamp_min(0)

    def mean(self, x):
        """Sum of the pixels that are there over their number."""
        ones = torch.ones_like(x[:1, :1])
        total = sum(
            F.pad(x, (1, 1, 1, 1))[..., i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)
        )
        count = sum(
            F.pad(ones, (1, 1, 1, 1))[..., i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)
        )
        return total / count

    def max(self, x):
        padded = F.pad(x, (1, 1, 1, 1), value=-float("inf"))
        shifts = [padded[..., i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)]
        return torch.stack(shifts).amax(0)

    def shrink(self, x):
        n, m = (x.shape[2] - 3) // 2 + 1, (x.shape[3] - 3) // 2 + 1
        return torch.stack(
            [x[..., i : i + 2 * n - 1 : 2, j : j + 2 * m - 1 : 2] for i in range(3) for j in range(3)]
        ).amax(0)

    def five(self, x, b):
        one = self.conv(x, f"{b}.branch1x1")
        five = self.conv(self.conv(x, f"{b}.branch5x5_1"), f"{b}.branch5x5_2", pad=(2, 2))
        three = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", pad=(1, 1))
        three = self.conv(three, f"{b}.branch3x3dbl_3", pad=(1, 1))
        return torch.cat([one, five, three, self.conv(self.mean(x), f"{b}.branch_pool")], 1)

    def six(self, x, b):
        one = self.conv(x, f"{b}.branch1x1")
        seven = self.conv(self.conv(x, f"{b}.branch7x7_1"), f"{b}.branch7x7_2", pad=(0, 3))
        seven = self.conv(seven, f"{b}.branch7x7_3", pad=(3, 0))
        double = self.conv(x, f"{b}.branch7x7dbl_1")
        for i, pad in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = self.conv(double, f"{b}.branch7x7dbl_{i}", pad=pad)
        return torch.cat([one, seven, double, self.conv(self.mean(x), f"{b}.branch_pool")], 1)

    def seven(self, x, b, pooled):
        one = self.conv(x, f"{b}.branch1x1")
        three = self.conv(x, f"{b}.branch3x3_1")
        three = [self.conv(three, f"{b}.branch3x3_2a", pad=(0, 1)), self.conv(three, f"{b}.branch3x3_2b", pad=(1, 0))]
        double = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", pad=(1, 1))
        double = [
            self.conv(double, f"{b}.branch3x3dbl_3a", pad=(0, 1)),
            self.conv(double, f"{b}.branch3x3dbl_3b", pad=(1, 0)),
        ]
        return torch.cat([one, *three, *double, self.conv(pooled, f"{b}.branch_pool")], 1)

    def __call__(self, x):
        out = {}
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = self.shrink(self.conv(x, "Conv2d_2b_3x3", pad=(1, 1)))
        out["64"] = x
        x = self.shrink(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"))
        out["192"] = x
        for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = out[b] = self.five(x, b)
        b = "Mixed_6a"
        double = self.conv(self.conv(x, f"{b}.branch3x3dbl_1"), f"{b}.branch3x3dbl_2", pad=(1, 1))
        x = torch.cat(
            [self.conv(x, f"{b}.branch3x3", 2), self.conv(double, f"{b}.branch3x3dbl_3", 2), self.shrink(x)], 1
        )
        out[b] = x
        for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            if b == "Mixed_6d":
                out["spatial"] = self.conv(x, f"{b}.branch1x1")[:, :7]
            x = out[b] = self.six(x, b)
        b = "Mixed_7a"
        wide = self.conv(self.conv(x, f"{b}.branch7x7x3_1"), f"{b}.branch7x7x3_2", pad=(0, 3))
        wide = self.conv(self.conv(wide, f"{b}.branch7x7x3_3", pad=(3, 0)), f"{b}.branch7x7x3_4", 2)
        x = torch.cat([self.conv(self.conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", 2), wide, self.shrink(x)], 1)
        out[b] = x
        x = out["Mixed_7b"] = self.seven(x, "Mixed_7b", self.mean(x))
        x = out["Mixed_7c"] = self.seven(x, "Mixed_7c", self.max(x))
        return out


def test_every_block_equals_the_straight_line(weights):
    net, seen = weights.network, {}
    hooks = [
        m.register_forward_hook(lambda m, a, o, n=n: seen.update({n: o}))
        for n, m in net.named_children()
        if "Mixed" in n
    ]
    x = protocol("edm").prepare(pictures(1))
    ours = net(x, tuple(LAYERS))
    for hook in hooks:
        hook.remove()
    theirs = StraightLine(net.state_dict())(x)
    sides = {"Mixed_5b": 35, "Mixed_6a": 17, "Mixed_6e": 17, "Mixed_7a": 8, "Mixed_7c": 8}
    assert {name: seen[name].shape[-1] for name in sides} == sides
    for name, value in seen.items():
        # float32 in another order of operations: 1e-6 by layer, some thirty layers deep
        assert (value - theirs[name]).abs().max() < 3e-4 * value.abs().max(), name
    pooled = {"64": theirs["64"], "192": theirs["192"], "768": theirs["Mixed_6e"], "2048": theirs["Mixed_7c"]}
    for layer, value in pooled.items():
        assert ours[layer].shape == (1, LAYERS[layer])
        assert torch.allclose(ours[layer], value.mean((2, 3)), rtol=1e-3, atol=1e-4), layer
    assert torch.allclose(ours["spatial"], theirs["spatial"].flatten(1), rtol=1e-3, atol=1e-4)
    logits = pooled["2048"].mean((2, 3)) @ net.fc.weight.T
    assert torch.allclose(ours["logits_unbiased"], logits, atol=1e-3)
    assert torch.equal(ours["logits"], ours["logits_unbiased"] + net.fc.bias)


@pytest.mark.parametrize(
    "ordinary", [{"Mixed_5b": "mean"}, {"Mixed_7b": "mean"}, {"Mixed_7c": "max"}], ids=lambda o: next(iter(o))
)
def test_ordinary_pooling_would_be_noticed(weights, ordinary):
    """With the pooling of other Inceptions in one block, features move by more than all rounding."""
    (name, kind), *_ = ordinary.items()
    block = getattr(weights.network, name)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, block.branch1x1.conv.in_channels, 8, 8, generator=generator)
    own = block.along(block.chains[-1], x)
    other = F.avg_pool2d(x, 3, 1, 1, count_include_pad=True)  # the paper's, as libraries ship it
    other = block.branch_pool(other)
    assert (own - other).abs().max() > 0.02 * own.abs().max()
    if kind == "mean":  # inside, where all nine pixels are there, the two agree
        assert torch.allclose(own[..., 1:-1, 1:-1], other[..., 1:-1, 1:-1], atol=1e-5)


def test_it_stays_in_evaluation_mode_and_says_what_it_needs(weights):
    net = weights.network
    assert not net.train().training and not any(p.requires_grad for p in net.parameters())
    with pytest.raises(BadValue, match="299"):
        net(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UnknownName, match="2048"):
        net(torch.zeros(1, 3, 299, 299), ("2047",))


# resizing


def tf1_by_hand(picture, side):
    """Pixel by pixel in float32, as the TensorFlow kernel does it."""
    f = np.float32
    height, width = picture.shape
    out = np.empty((side, side), f)
    for i in range(side):
        y = f(i) * (f(height) / f(side))
        y0 = int(np.floor(y))
        y1, dy = min(y0 + 1, height - 1), y - f(y0)
        for j in range(side):
            x = f(j) * (f(width) / f(side))
            x0 = int(np.floor(x))
            x1, dx = min(x0 + 1, width - 1), x - f(x0)
            top = picture[y0, x0] + (picture[y0, x1] - picture[y0, x0]) * dx
            bottom = picture[y1, x0] + (picture[y1, x1] - picture[y1, x0]) * dx
            out[i, j] = top + (bottom - top) * dy
    return out


@pytest.mark.parametrize("shape", [(32, 32), (8, 13), (70, 64), (1, 1), (299, 299)])
def test_tf1_resizing_equals_the_loop_bit_for_bit(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    side = 61 if shape != (299, 299) else 299
    ours = resize_tf1(torch.from_numpy(picture)[None, None], side)[0, 0].numpy()
    if side == 299:
        np.testing.assert_array_equal(ours, picture)
        return
    np.testing.assert_array_equal(ours, tf1_by_hand(picture, side))


@pytest.mark.parametrize("shape", [(32, 32), (64, 40), (500, 310)])
def test_clean_resizing_is_pillows(shape):
    levels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    theirs = np.asarray(Image.fromarray(levels).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    ours = RESIZERS["clean"](torch.from_numpy(levels)[None, None])[0, 0].numpy()
    # torch rounds its coefficients to float32, Pillow does not: a few ulp of 255 on each of up to nine taps an axis
    assert np.abs(ours - theirs).max() < 0.01


def test_half_pixel_resizing_is_the_textbooks():
    levels = np.random.default_rng(0).uniform(0, 255, (5, 7)).astype(np.float32)
    at = [np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1) for n in levels.shape]
    rows = np.array([np.interp(at[1], np.arange(7), row) for row in levels])
    theirs = np.array([np.interp(at[0], np.arange(5), column) for column in rows.T]).T
    ours = RESIZERS["half-pixel"](torch.from_numpy(levels)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


# protocols


def test_the_command_line_knows_the_protocols():
    assert set(NAMES) == set(PROTOCOLS)
    with pytest.raises(UnknownName, match="edm"):
        protocol("edn")


def test_rounding_is_each_implementations_own():
    x = torch.tensor([-2.0, -1.0, -0.9999, 0.0, 0.00391, 0.99, 1.0, 2.0], dtype=torch.float64)
    half_up = (x * 127.5 + 128).clip(0, 255).to(torch.uint8).float()  # EDM, generate.py
    down = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).float()  # guided-diffusion, image_sample.py
    assert torch.equal(grey_levels(x, "half-up"), half_up) and torch.equal(grey_levels(x, "down"), down)
    assert not torch.equal(half_up, down)
    every = torch.arange(256, dtype=torch.uint8)
    for rounding in ("half-up", "down", "none"):
        assert torch.equal(grey_levels(every, rounding), every.float())
    assert torch.equal(grey_levels(every.float() / 127.5 - 1), every.float())  # a file's level survives the round trip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_grey_is_repeated_and_a_flat_picture_stays_flat(name):
    of = protocol(name)
    seen = of.prepare(torch.full((2, 1, 8, 8), 200, dtype=torch.uint8))
    expected = (200 - 128) / 128 if of.centred else 200 / 127.5 - 1
    assert seen.shape == (2, 3, 299, 299) and torch.allclose(seen, torch.full_like(seen, expected), atol=1e-5)
    with pytest.raises(BadValue, match="1 or 3"):
        of.prepare(torch.zeros(2, 4, 8, 8))


def test_protocols_that_show_different_pictures_do_not_mix():
    same = ("edm", "torch-fidelity", "guided-diffusion")
    for a in PROTOCOLS.values():
        for b in PROTOCOLS.values():
            if a == b or (a.name in same and b.name in same):
                check_mixable(a, b)
            else:
                with pytest.raises(BadValue, match="resizing"):
                    check_mixable(a, b)
    assert any("rounding" in line for line in differences(protocol("edm"), protocol("guided-diffusion")))
    odd = Protocol("odd", "none", "tf1", False)
    assert odd.space_name != protocol("edm").space_name


def test_metrics_of_two_protocols_are_refused_and_named(weights):
    x = pictures(4)
    edm, clean = weights.space(protocol("edm"), "64"), weights.space(protocol("clean-fid"), "64")
    reference = Reference.of(edm, x)
    with pytest.raises(BadValue, match="Rebuild the reference"):
        Frechet(clean, reference)
    assert Frechet(edm, reference).name.startswith("FD[inception-v3~")  # random weights make no FID
    assert Frechet(weights.space(protocol("torch-fidelity"), "64"), reference).name == Frechet(edm, reference).name


def test_a_space_of_ones_own_sees_rounded_pictures():
    digits = feature_space("digits-cnn")
    seen = protocol("edm").seen(digits)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    rounded = grey_levels(x) / 127.5 - 1
    assert torch.equal(seen(x), digits(rounded)) and not torch.equal(seen(x), digits(x))
    assert seen.name == "digits-cnn@8bit" and seen.hash == digits.hash


# the file


def test_a_file_gives_the_features_of_its_weights(weights, file, tmp_path):
    read = load_inception(file)
    assert read.hash == weights.hash and not read.published and read.prefix == f"inception-v3~{weights.hash[:8]}"
    x = pictures(1)
    assert torch.equal(read.space(protocol("edm"), "192")(x), weights.space(protocol("edm"), "192")(x))
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in tensors(weights.network).items()}, tmp_path / "w.safetensors")
    assert load_inception(tmp_path / "w.safetensors").hash == weights.hash


def test_it_is_looked_for_where_it_is_said_to_be(file, tmp_path, monkeypatch):
    for name in ("EXPLORER_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("EXPLORER_INCEPTION", raising=False)
    with pytest.raises(BadFile, match=r"96 MB.*--inception FILE.*EXPLORER_INCEPTION.*digits-cnn"):
        find_weights()
    with pytest.raises(BadFile, match="no file 'here.pth'"):
        find_weights("here.pth")
    monkeypatch.setenv("EXPLORER_INCEPTION", str(file))
    assert find_weights() == file and find_weights(file) == file
    monkeypatch.delenv("EXPLORER_INCEPTION")
    own = tmp_path / "EXPLORER_CACHE" / inception.FILE
    own.parent.mkdir()
    own.write_bytes(b"")
    assert find_weights() == own


def test_fetching_keeps_only_what_has_the_published_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPLORER_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source.pth"
    source.write_bytes(b"not the weights")
    with pytest.raises(BadFile, match="not the published file"):
        inception.fetch_weights(source.as_uri())
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(BadFile, match="cannot be reached"):
        inception.fetch_weights("http://localhost:1/weights.pth", timeout=2)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"not the weights").hexdigest())
    kept = inception.fetch_weights(source.as_uri())
    assert kept.read_bytes() == b"not the weights" and kept == find_weights()
    source.unlink()
    assert inception.fetch_weights(source.as_uri()) == kept  # there already


class Trap:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('inception-was-run').touch()",))


def test_files_that_are_not_the_weights_are_refused_with_the_reason(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {
        k: torch.zeros(()).expand(v.shape) for k, v in torch.load(file, weights_only=True).items()
    }  # one number each

    def saved(name, content):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    def refused(path, words):
        with pytest.raises(BadFile, match=words):
            load_inception(path)

    nan = {**state, "fc.bias": torch.full((1008,), torch.nan)}
    refused(saved("nan.pth", nan), "fc.bias holds NaN")
    refused(saved("short.pth", {k: v for k, v in state.items() if k != "fc.bias"}), r"1 missing \(fc.bias")
    refused(saved("more.pth", {**state, "extra": torch.zeros(1)}), r"1 unknown \(extra")
    refused(saved("shape.pth", {**state, "fc.bias": torch.zeros(1000)}), r"fc.bias is torch.float32 \(1000,\)")
    refused(saved("library.pth", {**state, "AuxLogits.fc.weight": torch.zeros(1000, 768)}), "auxiliary head")
    assert load_inception(saved("whole.pth", state)).hash  # the others differ from it in one thing each
    refused(saved("list.pth", [1, 2]), "holds a list")
    refused(saved("trap.pth", {"fc.bias": Trap()}), "Nothing in it was run")
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[: 10**6])
    refused(tmp_path / "cut.pth", "bytes. Nothing in it was run")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "0 of 95628359 bytes")
    (tmp_path / "text.safetensors").write_text("hello")
    refused(tmp_path / "text.safetensors", "not in safetensors format")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "plain.pth", "Nothing in it was run")
    assert not (tmp_path / "inception-was-run").exists()


def test_nvidias_programs_are_named_and_not_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "inception-2015-12-05.pt", "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"inception/{name}", b"x")
    with pytest.raises(BadFile, match=r"TorchScript program.*would run code.*pt_inception-2015-12-05"):
        load_inception(tmp_path / "inception-2015-12-05.pt")
    meta = {"type": "class", "module_src": "raise SystemExit", "class_name": "InceptionV3"}
    stream = io.BytesIO()
    pickle.dump(meta, stream)
    (tmp_path / "inception-2015-12-05.pkl").write_bytes(stream.getvalue())
    with pytest.raises(BadFile, match="carries its own source"):
        load_inception(tmp_path / "inception-2015-12-05.pkl")


# DINOv2 and CLIP


def test_without_their_libraries_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"needs? timm, .*\[features\]"):
        feature_space("dinov2")
    with pytest.raises(MissingExtra, match=r"needs? open_clip, .*\[features\]"):
        feature_space("clip")


def test_a_torchvision_of_another_build_is_named(monkeypatch, tmp_path):
    """Its operators then do not load, and timm cannot be imported."""
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadValue, match=f"nms does not exist.*belongs to torch {re.escape(torch.__version__)}"):
        feature_space("dinov2")


class Eye(torch.nn.Module):
    """Stands for a large network: means of the four quarters of what it sees."""

    num_features = output_dim = 12
    image_size, image_mean, image_std = (16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    pretrained_cfg = {"mean": image_mean, "std": image_std}

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.seen = x
        return F.adaptive_avg_pool2d(x * self.scale, 2).flatten(1)


def test_a_large_network_sees_rounded_resized_standardised_pictures(monkeypatch, tmp_path):
    eye, asked = Eye(), {}
    fake = types.SimpleNamespace(create_model=lambda name, **options: asked.update(options, name=name) or eye)
    monkeypatch.setitem(sys.modules, "timm", fake)
    space = pretrained.dinov2_space(side=16)
    assert space.name == "dinov2-large" and space.dim == 12 and asked["num_classes"] == 0 and asked["pretrained"]
    x = torch.full((3, 1, 8, 8), 0.5001)
    assert space(x).shape == (3, 12)
    level = torch.tensor([192 / 255])  # floor(127.5 * 0.5001 + 128) = 191: see grey_levels
    level = grey_levels(x[0, 0, 0, :1]) / 255
    expected = (level - torch.tensor(Eye.image_mean)) / torch.tensor(Eye.image_std)
    assert torch.allclose(eye.seen[0].mean((1, 2)), expected, atol=1e-5) and eye.seen.shape == (3, 3, 16, 16)
    with pytest.raises(BadFile, match="no file"):
        pretrained.dinov2_space(tmp_path / "none.safetensors")

    def offline(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=offline))
    with pytest.raises(BadFile, match="could not be had"):
        pretrained.dinov2_space()


def test_clip_reads_the_eye_of_the_network_and_its_own_scale(monkeypatch, tmp_path):
    """What differs from DINOv2: the size, mean and deviation lie on `visual`, and features are those of `encode_image`."""
    from safetensors.torch import save_file

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Eye()

        def encode_image(self, x):
            return 2 * self.visual(x)

    net, asked = Clip(), {}
    fake = types.SimpleNamespace(create_model=lambda name, **options: asked.update(options, name=name) or net)
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    space = pretrained.clip_space()
    assert (asked["name"], asked["pretrained"], asked["force_quick_gelu"]) == ("ViT-L-14", "openai", True)
    x = pictures(3)
    got = space(x)
    assert space.name == "clip-ViT-L-14" and got.shape == (3, 12) and net.visual.seen.shape == (3, 3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (Eye.image_mean, Eye.image_std))
    whole = (grey_levels(x) / 255).expand(-1, 3, -1, -1)
    shown = F.interpolate(whole, (16, 16), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(net.visual.seen, (shown - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        got.float(), 2 * F.adaptive_avg_pool2d(net.visual.seen, 2).flatten(1), rtol=1e-5, atol=1e-5
    )
    save_file({"visual.scale": torch.tensor(3.0)}, tmp_path / "clip.safetensors")
    other = pretrained.clip_space(tmp_path / "clip.safetensors")
    assert asked["pretrained"] is None and float(net.visual.scale) == 3.0
    assert other.hash != space.hash
    save_file({"text.scale": torch.tensor(3.0)}, tmp_path / "clip.safetensors")
    with pytest.raises(BadFile, match="does not hold the weights"):
        pretrained.clip_space(tmp_path / "clip.safetensors")


@pytest.mark.parity
def test_timm_and_open_clip_build_what_is_asked_of_them(monkeypatch):
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: make(name, **{**options, "pretrained": False}))
    space = pretrained.dinov2_space(model="vit_small_patch14_dinov2.lvd142m", side=28)
    assert space.name == "dinov2-small" and space(pictures(2)).shape == (2, 384)
    open_clip = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))
    build = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, **_: build(name, pretrained=None))
    space = pretrained.clip_space(model="ViT-B-32")
    assert space.name == "clip-ViT-B-32" and space(pictures(2)).shape == (2, 512)


# other implementations, with our random weights in them


@pytest.mark.parity
def test_torch_fidelity_sees_the_same_bit_for_bit(weights, file):
    other = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=(ImportError, RuntimeError))
    layers = [layer for layer in LAYERS if layer != "spatial"]
    theirs = other.FeatureExtractorInceptionV3("ours", layers, feature_extractor_weights_path=str(file))
    x = pictures(2, side=40)
    for layer, value in zip(layers, theirs(x), strict=True):
        ours = weights.space(protocol("torch-fidelity"), layer)(x).float()
        assert torch.allclose(ours, value, rtol=1e-5, atol=1e-6), (
            layer
        )  # equal here; another machine may pick other kernels
    assert set(theirs.state_dict()) == set(Inception().state_dict())


@pytest.mark.parity
def test_pytorch_fid_takes_the_weights_and_agrees(weights, monkeypatch):
    other = pytest.importorskip("pytorch_fid.inception", exc_type=(ImportError, RuntimeError))
    monkeypatch.setattr(other, "load_state_dict_from_url", lambda *_, **__: tensors(weights.network))
    x = pictures(2, side=40)
    for dim, index in other.InceptionV3.BLOCK_INDEX_BY_DIM.items():
        theirs = other.InceptionV3([index]).eval()(x.float() / 255)[0].mean((2, 3))
        ours = weights.space(protocol("pytorch-fid"), str(dim))(x).float()
        # it resizes values of order one and we those of order 255: one more rounding, thirty layers deep
        assert (ours - theirs).abs().max() < 3e-4 * theirs.abs().max(), dim
