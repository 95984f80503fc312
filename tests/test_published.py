"""Published checkpoints: files in each format, written by independent networks, give back those networks' outputs."""

from __future__ import annotations

import io
import json
import math
import zipfile

import published_edm as pe
import published_torch as pt
import pytest
import torch

import explorer
from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models import published
from explorer.models.flow_maps import ConsistencyModel
from explorer.nets import CIFAR10_DDPMPP, CIFAR10_NCSNPP, DIT_XL, FFHQ64_DDPMPP, IMAGENET64_ADM, EDMUNet

TIGHT = {"rtol": 1e-5, "atol": 1e-5}  # float32 through some dozen layers of order one: seen 1e-7 to 2e-6
LABELS = torch.tensor([0, 1, 4, 2])
SMALL = {"size": 8, "colours": 3, "width": 16, "mult": (1, 2), "blocks": 1, "attention": (4,)}
WIDE = {**SMALL, "width": 64}  # ADM cuts heads of 64 channels


def images(size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))


def edm_file(kind: str, seed: int = 0):
    """A tiny network in the wrapper of that name."""
    torch.manual_seed(seed)
    match kind:
        case "edm-song":
            net = pe.SongUNet(out=3, classes=5, augment=9, **SMALL)
            return pe.EDMPrecond(net, 8, 5, sigma_min=0, sigma_max=math.inf, sigma_data=0.5)
        case "edm-ncsn":
            net = pe.SongUNet(
                out=3, classes=0, fourier=True, residual=True, taps=(1, 3, 3, 1), **{**SMALL, "blocks": 2}
            )
            return pe.EDMPrecond(net, 8, 0, sigma_min=0.01, sigma_max=50.0, sigma_data=0.6)
        case "edm-skip":  # NCSN++ with encoder_type and decoder_type 'skip'
            net = pe.SongUNet(
                out=3, classes=0, fourier=True, skips=True, taps=(1, 3, 3, 1), **{**SMALL, "mult": (1, 2, 2)}
            )
            return pe.EDMPrecond(net, 8, 0, sigma_min=0.01, sigma_max=50.0, sigma_data=0.6)
        case "edm-odd":  # DDPM++ with NCSN++'s filter: no preset of ours
            net = pe.SongUNet(out=3, classes=0, taps=(1, 3, 3, 1), **SMALL)
            return pe.EDMPrecond(net, 8, 0, sigma_min=0, sigma_max=math.inf, sigma_data=0.5)
        case "edm-adm":
            net = pe.DhariwalUNet(out=3, classes=5, **WIDE)
            return pe.EDMPrecond(net, 8, 5, sigma_min=0, sigma_max=math.inf, sigma_data=0.5)
        case "vp":
            net = pe.SongUNet(out=3, classes=0, **SMALL)
            return pe.VPPrecond(
                net, 8, 0, beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5, sigma_min=1e-3, sigma_max=152.0
            )
        case "ve":
            net = pe.SongUNet(out=3, classes=0, fourier=True, residual=True, taps=(1, 3, 3, 1), **SMALL)
            return pe.VEPrecond(net, 8, 0, sigma_min=0.02, sigma_max=100)
        case "iddpm":
            net = pe.DhariwalUNet(out=6, classes=5, **WIDE)
            return pe.iDDPMPrecond(net, 8, 5, C_1=0.001, C_2=0.008, M=1000)
        case "edm2":
            return pe.Precond(pe.UNet(8, 5, 64, (1, 2), 1, (4,)), 8, 5)
    raise KeyError(kind)


SKIPS = {"residual_encoder": False, "skip_encoder": True, "skip_decoder": True}
KINDS = ("edm-song", "edm-ncsn", "edm-skip", "edm-odd", "edm-adm", "vp", "ve", "iddpm", "edm2")
BOUNDS = {"edm-song": (0.002, 80), "edm-ncsn": (0.01, 50), "ve": (0.02, 100), "edm2": (0.002, 80)}


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_networks_give_the_outputs_of_those_that_were_pickled(kind, tmp_path):
    theirs, witness = edm_file(kind), tmp_path / "witness"
    file = tmp_path / f"{kind}.pkl"
    file.write_bytes(pe.pickled(theirs, witness, dataset_kwargs={"path": "/data/cifar10-32x32.zip"}))
    found = published.read(file)
    assert not witness.exists()  # the source text in the file would have made it
    n_theirs = len(theirs.state_dict())
    assert found.report.n_sources == n_theirs == found.card["tensors"]["in_file"]
    labels = LABELS if found.model.n_classes else None
    for sigma in (0.05, 0.7, 5.0) if kind != "iddpm" else theirs.u[[990, 500, 300]].tolist():
        x = images() * (1 + sigma)
        for label in (labels, None):
            with torch.no_grad():
                expected = theirs(x, sigma, label)
                t = found.model.path.time_at(sigma)
                alpha = found.model.path.at(t)[0]  # VP's own state is x alpha
                got = found.model.denoise(x * alpha, t, label)
            scale = float(expected.abs().max())
            # seconds in c_noise up to 1000 are rounded to 6e-5 in float32, and the embedding turns that into angles
            loose = 1e-4 if kind in ("vp", "iddpm") else 1e-5
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=loose * max(scale, 1.0))
    if kind in BOUNDS:
        assert found.model.sigma_range == pytest.approx(BOUNDS[kind])
    assert found.card["source"]["sha256"] and found.card["source"]["format"] in ("edm", "edm2")


def test_the_imported_model_is_a_file_of_ours(tmp_path):
    file = tmp_path / "edm-tiny-32x32-cond-vp.pkl"
    file.write_bytes(pe.pickled(edm_file("edm-song")))
    found = published.read(file)
    out = published.save(found, tmp_path / "kept/tiny.safetensors")
    again = explorer.load(str(out))
    x = images()
    assert torch.equal(again.denoise(x, 1.0, LABELS), found.model.denoise(x, 1.0, LABELS))
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["source"]["file"] == file.name and card["tensors"]["renamed"] > 100 and card["kind"] == "denoiser"
    once_more = published.read(out)  # our own format
    assert once_more.report.counts() == {"same name": len(again.net.state_dict())}
    assert torch.equal(once_more.model.denoise(x, 1.0, LABELS), again.denoise(x, 1.0, LABELS))
    with pytest.raises(BadValue, match="no name for a model"):
        published.save(found, tmp_path / "Tiny.pt")


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        ({}, {"attention_order": "new", "head_dim": 32}),
        ({"order": "legacy", "scaled": False, "classes": 5, "out": 6}, {"attention_order": "legacy", "head_dim": 32}),
        ({"updown": False, "mult": (1, 2, 2), "attention": (2, 4)}, {"attention_order": "new", "head_dim": 32}),
        ({"heads": 4, "order": "legacy"}, {"heads": 4}),
        ({"mult": (0.5, 1), "width": 64}, {"attention_order": "new", "head_dim": 32}),
    ],
    ids=["adm", "legacy-learned-variance", "improved-diffusion", "four-heads", "half-width-first"],
)
def test_openai_state_dicts_give_their_outputs(kwargs, options, tmp_path):
    theirs = pt.randomise(pt.UNetModel(**kwargs))
    torch.save(theirs.state_dict(), tmp_path / "any.pt")
    found = published.read(tmp_path / "any.pt", size=16, process="ddpm-linear", **options)
    labels, x, t = LABELS if "classes" in kwargs else None, images(16), torch.tensor([0.0, 3.0, 500.0, 999.0])
    with torch.no_grad():
        torch.testing.assert_close(found.model.net(x, t, labels), theirs(x, t, labels)[:, :3], **TIGHT)
    assert found.report.n_sources == len(theirs.state_dict())
    assert len(found.card["assumed"]) == 2  # the size and the heads were said by the caller, not by the file


def test_a_consistency_model_by_its_published_name(tmp_path):
    """cd_imagenet64_*: the flags are known from the name; 1000 ln(sigma) / 4 is what the network is shown."""
    theirs = pt.randomise(pt.UNetModel(width=64, mult=(1, 2), classes=5, head_dim=64))
    torch.save(theirs.state_dict(), tmp_path / "cd_imagenet64_l2.pt")
    found = published.read(tmp_path / "cd_imagenet64_l2.pt")
    assert isinstance(found.model, ConsistencyModel) and found.card["assumed"] == []
    assert found.model.shape == (3, 64, 64) and found.model.sigma_range == pytest.approx((0.002, 80.0))
    sigma, sd, low = math.exp(0.25), 0.5, 0.002  # ln sigma / 4 and 1000 times it are exact in float32
    x = images(64)
    with torch.no_grad():
        raw = theirs(x / math.hypot(sigma, sd), torch.full((4,), 62.5), LABELS)
        expected = sd**2 / ((sigma - low) ** 2 + sd**2) * x + sd * (sigma - low) / math.hypot(sigma, sd) * raw
        torch.testing.assert_close(found.model.jump(x, sigma, 0.0, LABELS), expected, rtol=1e-5, atol=3e-5)
        assert torch.equal(found.model.jump(x, low, 0.0, LABELS), x)  # the boundary condition
    out = published.save(found, tmp_path / "cd.safetensors")
    assert isinstance(explorer.load(str(out)), ConsistencyModel)


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        ({}, {"process": "flow"}),
        ({"fourier": True, "pyramid": True, "fir": True}, {}),
        ({"fourier": True, "skips": True, "fir": True, "mult": (1, 2, 2)}, {}),
        ({"fourier": True, "fir": True}, {"process": "vp"}),
        ({"fir": True}, {"process": "vp", "fir": True}),
        ({"mult": (1, 2, 2), "blocks": 3, "attention": (16,)}, {"process": "vp"}),
        ({"mult": (2, 1), "blocks": 1, "attention": ()}, {"process": "vp"}),
    ],
    ids=[
        "rectified-flow",
        "ncsn++",
        "ncsn++ with skips",
        "ncsn++ without pyramid",
        "ddpm++ with fir",
        "three levels",
        "no attention",
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_score_sde_checkpoints_give_the_outputs_of_their_moving_average(kwargs, options, zipped, tmp_path):
    theirs, averaged = (pt.randomise(pt.NCSNpp(**kwargs), seed) for seed in (0, 1))
    if "fourier" in kwargs:  # frequencies are not trained, so they are not averaged either
        averaged.all_modules[0].W.data = theirs.all_modules[0].W.data
    file = tmp_path / "checkpoint_8.pth"
    torch.save(pt.checkpoint(theirs, averaged), file, _use_new_zipfile_serialization=zipped)
    x, c = images(16), torch.tensor([0.1, 0.3, 5.0, 9.0])
    for ema, net in ((None, averaged), (False, theirs)):
        found = published.read(file, size=16, ema=ema, **options)
        with torch.no_grad():
            torch.testing.assert_close(found.model.net(x, c), net(x, c), **TIGHT)
    assert found.report.n_sources == len(theirs.state_dict()) and "optimizer" in found.card["not_read"]


def test_what_a_rectified_flow_means(tmp_path):
    """Theirs runs from noise (0) to data (1) and is shown 999 times its time; ours the other way."""
    theirs = pt.randomise(pt.NCSNpp(blocks=1))
    torch.save(pt.checkpoint(theirs, theirs), tmp_path / "c.pth")
    model = published.read(tmp_path / "c.pth", process="flow", size=16).model
    x, t = images(16), 0.75  # 999 * 0.25 is exact in float32
    with torch.no_grad():
        drift = theirs(x, torch.full((4,), 999 * 0.25))
        torch.testing.assert_close(model.velocity(x, t), -drift, **TIGHT)
        torch.testing.assert_close(model.denoise(x, t), x + t * drift, **TIGHT)  # where the straight line ends
    assert model.path.ratio_at(0.999) == pytest.approx(model.sigma_range[1])


def test_what_a_score_of_score_sde_means(tmp_path):
    """VP: score = -F(x; 999 t) / sigma(t). VE, for data in [0, 1]: score = F(2 x - 1; ln sigma) / sigma."""
    vp = pt.randomise(pt.NCSNpp(blocks=1))
    torch.save(pt.checkpoint(vp, vp), tmp_path / "vp.pth")
    model, x, t = published.read(tmp_path / "vp.pth", process="vp", size=16).model, images(16), 0.5
    log_alpha = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    sigma = math.sqrt(1 - math.exp(2 * log_alpha))
    with torch.no_grad():
        expected = -vp(x, torch.full((4,), 999 * t)) / sigma
        torch.testing.assert_close(model.score(x, t), expected, **TIGHT)
    ve = pt.randomise(pt.NCSNpp(blocks=1, fourier=True, pyramid=True, fir=True))
    torch.save(pt.checkpoint(ve, ve), tmp_path / "ve.pth")
    model, unit = (
        published.read(tmp_path / "ve.pth", size=16).model,
        images(16) * 0.3 + 0.5,
    )  # images in [0, 1] with noise
    s = 0.25
    with torch.no_grad():
        score = ve(2 * unit - 1, torch.full((4,), s).log()) / s
        denoised = unit + s**2 * score
        torch.testing.assert_close(model.denoise(2 * unit - 1, 2 * s), 2 * denoised - 1, **TIGHT)


def test_networks_with_image_skips_say_their_levels_and_how_they_join(tmp_path):
    """Those of 256x256 go up to sigma 348, and only the sum of picture and features is read."""
    net = pt.randomise(pt.NCSNpp(blocks=1, fourier=True, skips=True, fir=True))
    net.sigmas = torch.linspace(348, 0.01, 2000)
    torch.save(pt.checkpoint(net, net), tmp_path / "ve.pth")
    found = published.read(tmp_path / "ve.pth", size=16)
    assert found.card["source"]["process"] == "ve" and found.model.sigma_range == pytest.approx((0.02, 696.0))
    assert found.model.net.config["differs"] == SKIPS
    at = next(i for i, part in enumerate(net.all_modules) if isinstance(part, pt.Combine))
    net.all_modules[at + 1] = pt.BigGAN(32, 32, 64)  # as after a concatenation of 16 and 16
    torch.save(pt.checkpoint(net, net), tmp_path / "cat.pth")
    with pytest.raises(BadFile, match="otherwise than by addition"):
        published.read(tmp_path / "cat.pth", size=16)
    net = pt.randomise(pt.NCSNpp(blocks=1, fourier=True, skips=True))
    net.sigmas = torch.zeros(2)
    torch.save(pt.checkpoint(net, net), tmp_path / "zero.pth")
    with pytest.raises(BadFile, match="not positive numbers"):
        published.read(tmp_path / "zero.pth", size=16)


@pytest.mark.parametrize("variance", [True, False])
@pytest.mark.parametrize("held", ["alone", "checkpoint"])
def test_transformers_on_latents_give_their_outputs(variance, held, tmp_path):
    theirs, other = (pt.randomise(pt.DiT(variance=variance), seed) for seed in (0, 1))
    state = theirs.state_dict()
    content = state if held == "alone" else {"model": other.state_dict(), "ema": state, "opt": {}, "args": None}
    torch.save(content, tmp_path / "DiT-tiny.pt")
    found = published.read(tmp_path / "DiT-tiny.pt", heads=4)
    assert found.report.n_sources == len(state) and found.card["source"]["format"] == "dit"
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 3.0, 500.0, 999.0])
    with torch.no_grad():
        torch.testing.assert_close(found.model.net(x, t, LABELS), theirs(x, t, LABELS)[:, :4], **TIGHT)
        null = theirs(x, t, torch.full((4,), 5))[:, :4]
        torch.testing.assert_close(found.model.net(x, t, None), null, **TIGHT)
        torch.testing.assert_close(found.model.net(x, t, torch.full((4,), -1)), null, **TIGHT)
        level = float(found.model.precondition.levels()[500])
        step = torch.tensor([500.0]).expand(4)
        torch.testing.assert_close(
            found.model.eps(x * math.hypot(1, level), level, LABELS),
            theirs(x, step, LABELS)[:, :4],
            rtol=1e-4,
            atol=1e-4,
        )
    assert found.card["not_read"] == ([] if held == "alone" else ["model", "opt", "args"])
    out = published.save(found, tmp_path / "dit.safetensors")
    assert torch.equal(explorer.load(str(out)).net(x, t, LABELS), found.model.net(x, t, LABELS))


def test_the_published_transformers_have_their_heads_and_every_tensor_a_place(tmp_path):
    """DiT-XL/2 at 256x256: 675 M parameters and 28 blocks, as its file names them; no numbers are made."""
    with torch.device("meta"):
        theirs = pt.DiT(size=32, width=1152, depth=28, heads=16, classes=1000)
        ours = published.dit.DiT(**DIT_XL)
    rules = published.dit.wanted_of(ours)
    used = [name for _, names in rules.values() for name in names]
    assert len(used) == len(set(used)) and {*used, "pos_embed"} == set(theirs.state_dict())
    sizes = {name: value.numel() for name, value in theirs.state_dict().items()}
    assert sum(sizes[name] for name in used) == sum(p.numel() for p in ours.parameters())
    assert sum(sizes.values()) == 675_129_632  # the fixed places among them
    torch.save(pt.DiT().state_dict(), tmp_path / "odd.pt")
    with pytest.raises(BadValue, match="a width of 48 is cut: give --heads"):
        published.read(tmp_path / "odd.pt")
    wrong = pt.randomise(pt.DiT())
    wrong.pos_embed.data[0, 3, 5] += 0.1
    torch.save(wrong.state_dict(), tmp_path / "odd.pt")
    with pytest.raises(BadFile, match="pos_embed is not what"):
        published.read(tmp_path / "odd.pt", heads=4)
    for name, message in (
        ("blocks.1.mlp.fc2.bias", "missing"),
        ("y_embedder.embedding_table.weight", "table of classes"),
    ):
        state = pt.randomise(pt.DiT()).state_dict()
        del state[name]
        torch.save(state, tmp_path / "odd.pt")
        with pytest.raises(BadFile, match=message):
            published.read(tmp_path / "odd.pt", heads=4)


DDPM = {"sample_size": 16, "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1}  # fmt: skip
FOLDERS = {
    "ddpm": {**DDPM, "layers_per_block": 2, "norm_num_groups": 8, "attention_head_dim": None, "flip_sin_to_cos": False,
             "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "defaults": DDPM,
    "adm": {**DDPM, "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "downsample_type": "resnet", "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32, "num_class_embeds": 5, "attention_head_dim": 16},
}  # fmt: skip


def folder_of(name: str, to, **more):
    """A network of diffusers, saved by it with a scheduler, and the network."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**{**FOLDERS[name], **more}).eval()
    with torch.no_grad():
        for p in net.parameters():  # biases and norms away from 0 and 1
            p.add_(0.05 * torch.randn_like(p))
    net.save_pretrained(to / "unet")
    scheduler = diffusers.CMStochasticIterativeScheduler() if name == "adm" else diffusers.DDPMScheduler()
    scheduler.save_pretrained(to / "scheduler")
    return net, scheduler


@pytest.mark.parity
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_diffusers_give_its_outputs(name, tmp_path):
    theirs, scheduler = folder_of(name, tmp_path)
    found = published.read(tmp_path)
    x, labels = images(16), LABELS if name == "adm" else None
    inner = getattr(found.model, "inner", found.model)
    assert found.report.n_sources == len(theirs.state_dict())
    assert (tmp_path / "unet").is_dir() and published.read(tmp_path / "unet").card["source"]["process"] == type(
        scheduler
    ).__name__
    if name == "adm":
        assert isinstance(found.model, ConsistencyModel)
        with torch.no_grad():
            c = torch.tensor([0.25, 0.0, -0.5, 0.0625])  # times 1000 exact
            torch.testing.assert_close(inner.net(x, c, labels), theirs(x, 1000 * c, labels).sample, **TIGHT)
        return
    bar, levels = scheduler.alphas_cumprod.double(), inner.precondition.levels()
    # alphas_cumprod is a float32 product: 6e-8 beside the first beta, 1e-4
    torch.testing.assert_close(levels, ((1 - bar) / bar).sqrt(), rtol=1e-3, atol=0.0)
    for step in (0, 40, 500, 999):
        sigma = float(levels[step])
        x = images(16) * math.sqrt(1 + sigma**2)
        with torch.no_grad():
            eps = theirs(images(16), step).sample
            # (x - D) / sigma loses 1e-7 / sigma, and the interpolated index is whole to 1e-10 only
            torch.testing.assert_close(found.model.eps(x, sigma), eps, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(inner.net(images(16), torch.tensor([float(step)])), eps, **TIGHT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"mid_block_scale_factor": 1.5}, "mid_block_scale_factor=1.5"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]}, "built of SkipDownBlock2D"),
        ({"_class_name": "UNet2DConditionModel"}, "it is a UNet2DConditionModel"),
        ({"norm_num_groups": "32"}, "norm_num_groups is '32'"),
        ({"sample_size": [16, 32]}, "only square images"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused_with_the_option(change, message, tmp_path):
    pytest.importorskip("diffusers")
    folder_of("defaults", tmp_path)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadFile, match=message):
        published.read(tmp_path)


CIFAR10 = {"width": 128, "mult": (2, 2, 2), "blocks": 4, "attention": (16,), "size": 32, "classes": 0}
FFHQ = {**CIFAR10, "mult": (1, 2, 2, 2), "size": 64}
IMAGENET = {"width": 192, "mult": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8), "size": 64, "classes": 1000}


@pytest.mark.parametrize(
    ("kind", "config", "n_tensors", "options"),
    [
        ("cond-vp", CIFAR10_DDPMPP, 427, {**CIFAR10, "classes": 10}),
        ("uncond-vp", CIFAR10_DDPMPP, 425, CIFAR10),
        ("cond-ve", CIFAR10_NCSNPP, 434, {**CIFAR10, "classes": 10}),
        ("ffhq-vp", FFHQ64_DDPMPP, 553, FFHQ),
        ("imagenet", IMAGENET64_ADM, 553, IMAGENET),
    ],
    ids=["cifar10-cond-vp", "cifar10-uncond-vp", "cifar10-cond-ve", "ffhq-vp", "imagenet-adm"],
)
def test_names_and_counts_of_the_published_files(kind, config, n_tensors, options):
    """Every tensor of the released layout has one place in the paper's network, shapes and all; no numbers are made."""
    adm, ve = kind == "imagenet", kind == "cond-ve"
    extra = {} if adm else {"augment": 9, **({"fourier": True, "residual": True, "taps": (1, 3, 3, 1)} if ve else {})}
    with torch.device("meta"):
        theirs = (pe.DhariwalUNet if adm else pe.SongUNet)(colours=3, out=3, **options, **extra)
        ours = EDMUNet(**{**config, "n_classes": options["classes"]})
    named = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    assert len(named) == n_tensors
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    rules = published.edm.wanted_of(ours, ours.config, False)
    used = [name for _, names in rules.values() for name in names]
    left = [name for name in named if name not in used]
    assert len(set(used)) == len(used) and all(name.endswith("resample_filter") for name in left)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    for key, (_, names) in rules.items():
        assert math.prod(shapes[key]) == sum(named[name].numel() for name in names), key


def test_published_state_dicts_have_their_size():
    """295.9 M of ADM at 64x64 (arXiv 2105.05233 says 296 M), laid out as openai's file is."""
    with torch.device("meta"):
        theirs = pt.UNetModel(
            width=192, mult=(1, 2, 3, 4), blocks=3, attention=(2, 4, 8), classes=1000, head_dim=64, out=6
        )
    assert sum(p.numel() for p in theirs.parameters()) == 295_899_267 + 3 * (192 * 9 + 1)  # and the variance


def test_options_that_are_needed_or_do_not_apply(tmp_path):
    torch.save(pt.UNetModel().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(BadValue, match="do not say size and process"):
        published.read(tmp_path / "mine.pt")
    with pytest.raises(UnknownName, match="ddpm-cosine"):
        published.read(tmp_path / "mine.pt", size=16, process="ddpm-cosin")
    net = pt.NCSNpp()
    torch.save(pt.checkpoint(net, net), tmp_path / "c.pth")
    with pytest.raises(BadValue, match="--process flow"):
        published.read(tmp_path / "c.pth")
    (tmp_path / "e.pkl").write_bytes(pe.pickled(edm_file("edm-song")))
    with pytest.raises(BadValue, match="size does not apply"):
        published.read(tmp_path / "e.pkl", size=32)
    with pytest.raises(BadFile, match="format edm, not score-sde"):
        published.read(tmp_path / "e.pkl", format="score-sde")


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from explorer.cli import app

    file, out = tmp_path / "tiny.pkl", tmp_path / "kept/tiny.safetensors"
    file.write_bytes(pe.pickled(edm_file("edm-song")))

    def run(*words):
        return CliRunner().invoke(app, [*map(str, words)])

    done = run("import", file, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    about = json.loads(done.stdout)
    assert (
        about["file"] == str(out)
        and about["report"]["counts"]["renamed"] > 100
        and about["model"]["shape"] == [3, 8, 8]
    )
    done = run("sample", out, "--n", 4, "--steps", 2, "--out", tmp_path / "x.npz")
    assert done.exit_code == 0 and (tmp_path / "x.npz").is_file(), done.output
    done = run("import", file, "--out", tmp_path / "Bad Name.pt")
    assert done.exit_code == 2 and "no name for a model" in done.stderr
    done = run("import", "--help")
    assert "checkpoint_8.pth" in done.output and "Examples" in done.output


def test_the_command_in_words(tmp_path, capsys):
    from explorer.cli.importing import import_

    file = tmp_path / "tiny.pkl"
    file.write_bytes(pe.pickled(edm_file("edm-song")))
    import_(file, tensors=True)
    said = capsys.readouterr()
    assert (
        "none missing, none left over" in said.out
        and "model.map_label.weight -> embedding.label.weight: renamed" in said.out
    )
    assert "the file says from 0 to inf" in said.err
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "other.pt").write_bytes(buffer.getvalue())
    with pytest.raises(BadFile, match="none of torch's"):
        import_(tmp_path / "other.pt")
