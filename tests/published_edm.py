"""Networks with the parameter names of EDM's and EDM2's released files, written from the papers, and a pickler in their layout.

Nothing here uses explorer: what is read back is compared with these. Sources: arXiv 2206.00364, appendix F; arXiv 2312.02696, Fig. 21.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Module):
    def __init__(self, n_in, n_out, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5)
        self.bias = nn.Parameter(torch.randn(n_out) * 0.2) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Resamples by a separable filter in front of the convolution; with `fused` smooths behind it. kernel 0: no convolution."""

    def __init__(self, n_in, n_out, kernel, up=False, down=False, taps=(1, 1), fused=False):
        super().__init__()
        self.up, self.down, self.fused = up, down, fused
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in**0.5 * kernel)) if kernel else None
        self.bias = nn.Parameter(torch.randn(n_out) * 0.2) if kernel else None
        line = torch.tensor(taps, dtype=torch.float32)
        square = torch.outer(line, line)[None, None] / line.sum() ** 2
        self.register_buffer("resample_filter", square if up or down else None)

    def _resampled(self, x):
        if self.resample_filter is None:
            return x
        each = self.resample_filter.repeat(x.shape[1], 1, 1, 1)
        pad = (each.shape[-1] - 1) // 2
        if self.up:
            return F.conv_transpose2d(x, 4 * each, stride=2, padding=pad, groups=x.shape[1])
        return F.conv2d(x, each, stride=2, padding=pad, groups=x.shape[1])

    def forward(self, x):
        if self.weight is None:
            return self._resampled(x)
        if not self.fused:
            return F.conv2d(self._resampled(x), self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        taps = self.resample_filter.shape[-1]
        wide = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + (taps - 1) // 2)
        each = self.resample_filter.repeat(wide.shape[1], 1, 1, 1)
        return F.conv2d(wide, each, stride=2, groups=wide.shape[1]) + self.bias[:, None, None]


class GroupNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.num_groups, self.eps = min(32, n // 4), eps
        self.weight, self.bias = nn.Parameter(1 + 0.1 * torch.randn(n)), nn.Parameter(0.1 * torch.randn(n))

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class UNetBlock(nn.Module):
    def __init__(self, n_in, n_out, n_emb, song, up=False, down=False, attention=False, dropout=0.13, taps=(1, 1)):
        super().__init__()
        self.in_channels, self.out_channels, self.dropout, eps = n_in, n_out, dropout, 1e-6 if song else 1e-5
        self.skip_scale = np.sqrt(0.5) if song else 1
        self.adaptive_scale = not song
        self.num_heads = (1 if song else n_out // 64) if attention else 0
        self.norm0, self.conv0 = GroupNorm(n_in, eps), Conv2d(n_in, n_out, 3, up, down, taps)
        self.affine = Linear(n_emb, n_out if song else 2 * n_out)
        self.norm1, self.conv1 = GroupNorm(n_out, eps), Conv2d(n_out, n_out, 3)
        self.skip = None
        if n_in != n_out or up or down:
            self.skip = Conv2d(n_in, n_out, 1 if song or n_in != n_out else 0, up, down, taps)
        if self.num_heads:
            self.norm2, self.qkv, self.proj = (
                GroupNorm(n_out, eps),
                Conv2d(n_out, 3 * n_out, 1),
                Conv2d(n_out, n_out, 1),
            )

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        film = self.affine(emb)[..., None, None]
        if self.adaptive_scale:
            gain, shift = film.split(film.shape[1] // 2, 1)
            h = self.norm1(h) * (1 + gain) + shift
        else:
            h = self.norm1(h + film)
        h = self.conv1(F.silu(h))
        x = (h + (x if self.skip is None else self.skip(x))) * float(self.skip_scale)
        if not self.num_heads:
            return x
        B, C, H, W = x.shape
        rows = self.qkv(self.norm2(x)).reshape(B, self.num_heads, C // self.num_heads, 3, H * W)
        q, k, v = rows[:, :, :, 0], rows[:, :, :, 1], rows[:, :, :, 2]  # row 3 c + j of a head
        w = (q.transpose(-1, -2) @ k / (C // self.num_heads) ** 0.5).softmax(-1)
        return (x + self.proj((v @ w.transpose(-1, -2)).reshape(B, C, H, W))) * float(self.skip_scale)


class PositionalEmbedding(nn.Module):
    def __init__(self, n, endpoint):
        super().__init__()
        self.n, self.endpoint = n, endpoint

    def forward(self, c):
        half = self.n // 2
        f = torch.tensor([10000.0 ** (-i / (half - self.endpoint)) for i in range(half)])
        return torch.cat([(c[:, None] * f).cos(), (c[:, None] * f).sin()], 1)


class FourierEmbedding(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("freqs", torch.randn(n // 2) * 0.3)

    def forward(self, c):
        angle = 2 * math.pi * c[:, None] * self.freqs
        return torch.cat([angle.cos(), angle.sin()], 1)


class SongUNet(nn.Module):
    song = True

    def __init__(self, size, colours, out, classes, width, mult, blocks, attention, augment=0, fourier=False, residual=False,
                 taps=(1, 1), skips=False):  # fmt: skip
        super().__init__()
        song, n_noise, n_emb = self.song, width * (2 if fourier else 1), 4 * width
        self.map_noise = FourierEmbedding(n_noise) if fourier else PositionalEmbedding(n_noise, int(song))
        self.map_label = None
        if classes:
            self.map_label = Linear(classes, n_noise) if song else Linear(classes, n_emb, bias=False)
        self.map_augment = Linear(augment, n_noise, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = Linear(n_noise, n_emb), Linear(n_emb, n_emb)
        options = {"song": song, "taps": taps}
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        n, n_image, kept = width if song else width * mult[0], colours, []
        for level, m in enumerate(mult):
            r = f"{size >> level}x{size >> level}"
            if level == 0:
                self.enc[f"{r}_conv"] = Conv2d(colours, n, 3)
            else:
                self.enc[f"{r}_down"] = UNetBlock(n, n, n_emb, down=True, **options)
                if residual:
                    self.enc[f"{r}_aux_residual"] = Conv2d(n_image, n, 3, down=True, taps=taps, fused=True)
                    n_image = n
                if skips:
                    self.enc[f"{r}_aux_down"] = Conv2d(colours, colours, 0, down=True, taps=taps)
                    self.enc[f"{r}_aux_skip"] = Conv2d(colours, n, 1)
            kept.append(n)
            for i in range(blocks):
                self.enc[f"{r}_block{i}"] = UNetBlock(
                    n, width * m, n_emb, attention=size >> level in attention, **options
                )
                n = width * m
                kept.append(n)
        for level, m in reversed(list(enumerate(mult))):
            r = f"{size >> level}x{size >> level}"
            if level == len(mult) - 1:
                self.dec[f"{r}_in0"] = UNetBlock(n, n, n_emb, attention=True, **options)
                self.dec[f"{r}_in1"] = UNetBlock(n, n, n_emb, **options)
            else:
                self.dec[f"{r}_up"] = UNetBlock(n, n, n_emb, up=True, **options)
            for i in range(blocks + 1):
                attend = size >> level in attention and (not song or i == blocks)
                self.dec[f"{r}_block{i}"] = UNetBlock(n + kept.pop(), width * m, n_emb, attention=attend, **options)
                n = width * m
            if skips and level:
                if level < len(mult) - 1:
                    self.dec[f"{r}_aux_up"] = Conv2d(out, out, 0, up=True, taps=taps)
                self.dec[f"{r}_aux_norm"], self.dec[f"{r}_aux_conv"] = GroupNorm(n, 1e-6), Conv2d(n, out, 3)
        if skips:
            self.dec[f"{size}x{size}_aux_up"] = Conv2d(out, out, 0, up=True, taps=taps)
        last = (f"{size}x{size}_aux_norm", f"{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
        holder = self.dec if song else self
        holder.add_module(last[0], GroupNorm(n, 1e-6 if song else 1e-5))
        holder.add_module(last[1], Conv2d(n, out, 3))

    def forward(self, x, c_noise, label, augment=None):
        emb = self.map_noise(c_noise)
        if self.song:
            emb = torch.cat(emb.chunk(2, 1)[::-1], 1)
            if self.map_label is not None:
                emb = emb + self.map_label(label * label.shape[1] ** 0.5)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if not self.song and self.map_label is not None:
            emb = emb + self.map_label(label)
        emb, image, kept = F.silu(emb), x, []
        for name, part in self.enc.items():
            if "aux_down" in name:
                image = part(image)
            elif "aux_skip" in name:
                x = kept[-1] = kept[-1] + part(image)
            elif "aux" in name:
                x = image = kept[-1] = (kept[-1] + part(image)) / math.sqrt(2)
            else:
                x = part(x) if "conv" in name else part(x, emb)
                kept.append(x)
        picture = None
        for name, part in self.dec.items():
            if "aux_up" in name:
                picture = part(picture)
            elif "aux_norm" in name:
                normed = part(x)
            elif "aux_conv" in name:
                picture = part(F.silu(normed)) + (0 if picture is None else picture)
            else:
                x = part(torch.cat([x, kept.pop()], 1) if "block" in name else x, emb)
        return picture if self.song else self.out_conv(F.silu(self.out_norm(x)))


class DhariwalUNet(SongUNet):
    song = False


class Precondition(nn.Module):
    """Common to the wrappers, which differ in their attributes and coefficients."""

    inner = "model"

    def __init__(self, model, size, classes, **attributes):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim, self.use_fp16 = size, 3, classes, False
        for name, value in attributes.items():
            setattr(self, name, value)
        self.add_module(self.inner, model)

    def coefficients(self, s):
        sd = self.sigma_data
        return sd**2 / (s**2 + sd**2), s * sd / math.sqrt(s**2 + sd**2), 1 / math.sqrt(s**2 + sd**2), math.log(s) / 4

    def forward(self, x, sigma, labels=None):
        if not self.label_dim:
            hot = None
        else:
            hot = torch.zeros(1, self.label_dim) if labels is None else F.one_hot(labels, self.label_dim).float()
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        raw = getattr(self, self.inner)(c_in * x, torch.full((len(x),), c_noise), hot)
        return c_skip * x + c_out * raw[:, :3]


class EDMPrecond(Precondition):
    pass


class VPPrecond(Precondition):
    def coefficients(self, s):
        t = (math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log(1 + s**2)) - self.beta_min) / self.beta_d
        return 1, -s, 1 / math.sqrt(s**2 + 1), (self.M - 1) * t


class VEPrecond(Precondition):
    def coefficients(self, s):
        return 1, s, 1, math.log(0.5 * s)


class iDDPMPrecond(Precondition):  # noqa: N801, the name in the files
    def __init__(self, *args, **attributes):
        super().__init__(*args, **attributes)
        u = [0.0]
        for j in range(self.M, 0, -1):
            a = [math.sin(0.5 * math.pi * i / self.M / (self.C_2 + 1)) ** 2 for i in (j - 1, j)]
            u.append(math.sqrt((u[-1] ** 2 + 1) / max(a[0] / a[1], self.C_1) - 1))
        self.register_buffer("u", torch.tensor(u[::-1]))

    def coefficients(self, s):
        return 1, -s, 1 / math.sqrt(s**2 + 1), self.M - 1 - int((self.u - s).abs().argmin())


POISON = "open({witness!r}, 'w').write('executed')\nraise SystemExit\n"
PLAIN = (nn.ModuleDict, nn.ModuleList)


class Persistent(pickle.Pickler):
    """Writes every module but torch's containers as the released files do: a call with source text, class name and attributes."""

    def __init__(self, stream, source):
        super().__init__(stream, protocol=4)
        self.source = source

    def reducer_override(self, value):
        if isinstance(value, nn.Module) and not isinstance(value, PLAIN):
            meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": type(value).__name__}
            return FAKE, ({**meta, "state": {**value.__dict__, "_init_args": (), "_init_kwargs": {}}},)
        return NotImplemented


def pickled(network, witness="never", **others) -> bytes:
    """The bytes of a released file: {"ema": network, ...}, its source text poisoned."""
    stream = io.BytesIO()
    content = {"ema": network.eval().requires_grad_(False), "loss_fn": None, "augment_pipe": None, **others}
    Persistent(stream, POISON.format(witness=str(witness))).dump(content)
    return stream.getvalue()


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the reader ran what the file asked for")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
FAKE = _reconstruct_persistent_obj
for _name in ("torch_utils", "torch_utils.persistence"):
    sys.modules.setdefault(_name, types.ModuleType(_name))
sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = FAKE


# EDM2


def rms(x, dims):
    """x over its root mean square; float32 (arXiv 2312.02696, Eq. 47)."""
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


class MPConv(nn.Module):
    def __init__(self, n_in, n_out, *kernel):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *kernel))

    def forward(self, x, gain=1.0):
        w = rms(self.weight, tuple(range(1, self.weight.ndim))) * gain / self.weight[0].numel() ** 0.5
        return x @ w.T if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class MPFourier(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(n))
        self.register_buffer("phases", 2 * math.pi * torch.rand(n))

    def forward(self, c):
        return 2**0.5 * (c[:, None] * self.freqs + self.phases).cos()


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


class Block(nn.Module):
    def __init__(self, n_in, n_out, n_emb, flavor, mode="keep", attention=False):
        super().__init__()
        self.flavor, self.resample_mode, self.resample_filter = flavor, mode, [1, 1]
        self.num_heads, self.dropout = n_out // 64 if attention else 0, 0
        self.res_balance, self.attn_balance, self.clip_act = 0.3, 0.3, 3
        self.emb_gain = nn.Parameter(torch.tensor(0.7))
        self.conv_res0 = MPConv(n_out if flavor == "enc" else n_in, n_out, 3, 3)
        self.emb_linear, self.conv_res1 = MPConv(n_emb, n_out), MPConv(n_out, n_out, 3, 3)
        self.conv_skip = MPConv(n_in, n_out, 1, 1) if n_in != n_out else None
        self.attn_qkv = MPConv(n_out, 3 * n_out, 1, 1) if attention else None
        self.attn_proj = MPConv(n_out, n_out, 1, 1) if attention else None

    def forward(self, x, emb):
        if self.resample_mode == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample_mode == "up":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if self.flavor == "enc":
            x = rms(x if self.conv_skip is None else self.conv_skip(x), 1)
        y = self.conv_res0(F.silu(x) / 0.596) * (1 + self.emb_linear(emb, self.emb_gain))[..., None, None]
        y = self.conv_res1(F.silu(y) / 0.596)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.num_heads:
            B, C, H, W = x.shape
            y = rms(self.attn_qkv(x).reshape(B, self.num_heads, 64, 3, H * W), 2)
            w = (y[:, :, :, 0].transpose(-1, -2) @ y[:, :, :, 1] / 8).softmax(-1)
            x = mp_sum(x, self.attn_proj((y[:, :, :, 2] @ w.transpose(-1, -2)).reshape(B, C, H, W)), self.attn_balance)
        return x.clip(-self.clip_act, self.clip_act)


class UNet(nn.Module):
    def __init__(self, size, classes, width, mult, blocks, attention):
        super().__init__()
        self.label_balance, self.concat_balance = 0.4, 0.6
        self.out_gain = nn.Parameter(torch.tensor(0.9))
        n_emb = width * max(mult)
        self.emb_fourier, self.emb_noise = MPFourier(width), MPConv(width, n_emb)
        self.emb_label = MPConv(classes, n_emb) if classes else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        n, kept = width * mult[0], [width * mult[0]]
        for level, m in enumerate(mult):
            r = f"{size >> level}x{size >> level}"
            if level == 0:
                self.enc[f"{r}_conv"] = MPConv(4, n, 3, 3)
            else:
                self.enc[f"{r}_down"] = Block(n, n, n_emb, "enc", "down")
                kept.append(n)
            for i in range(blocks):
                self.enc[f"{r}_block{i}"] = Block(n, width * m, n_emb, "enc", attention=size >> level in attention)
                n = width * m
                kept.append(n)
        for level, m in reversed(list(enumerate(mult))):
            r = f"{size >> level}x{size >> level}"
            if level == len(mult) - 1:
                self.dec[f"{r}_in0"] = Block(n, n, n_emb, "dec", attention=True)
                self.dec[f"{r}_in1"] = Block(n, n, n_emb, "dec")
            else:
                self.dec[f"{r}_up"] = Block(n, n, n_emb, "dec", "up")
            for i in range(blocks + 1):
                attend = size >> level in attention
                self.dec[f"{r}_block{i}"] = Block(n + kept.pop(), width * m, n_emb, "dec", attention=attend)
                n = width * m
        self.out_conv = MPConv(n, 3, 3, 3)

    def forward(self, x, c_noise, label):
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            emb = mp_sum(emb, self.emb_label(label * label.shape[1] ** 0.5), self.label_balance)
        emb = F.silu(emb) / 0.596
        x, kept = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for name, part in self.enc.items():
            x = part(x) if "conv" in name else part(x, emb)
            kept.append(x)
        for name, part in self.dec.items():
            if "block" in name:
                skip, t = kept.pop(), self.concat_balance
                n_a, n_b = x.shape[1], skip.shape[1]
                gain = ((n_a + n_b) / ((1 - t) ** 2 + t**2)) ** 0.5
                x = torch.cat([gain * (1 - t) / n_a**0.5 * x, gain * t / n_b**0.5 * skip], 1)
            x = part(x, emb)
        return self.out_conv(x, self.out_gain)


class Precond(Precondition):
    """EDM2's wrapper: the network is called `unet`, and there is a small head for the uncertainty of training."""

    inner = "unet"

    def __init__(self, unet, size, classes, sigma_data=0.5):
        super().__init__(unet, size, classes, sigma_data=sigma_data)
        self.logvar_fourier, self.logvar_linear = MPFourier(8), MPConv(8, 1)
