"""Networks with the parameter names of openai's and score_sde's state dicts, and of DiT's, written from the papers.

Nothing here uses explorer: what is read back is compared with these. Sources: arXiv 2105.05233; arXiv 2102.09672; arXiv 2011.13456;
arXiv 2212.09748.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters redrawn, none zero, at a size that keeps activations of order one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.requires_grad:
                fan_in = p[0].numel() if p.ndim > 1 else 1
                fan_in = p.shape[0] if name.endswith(".W") and p.ndim == 2 else fan_in
                p.copy_(torch.randn(p.shape, generator=g) * (fan_in**-0.5 if p.ndim > 1 else 0.2))
    return net.eval()


def norm(n, eps=1e-5, groups=32):
    return nn.GroupNorm(groups, n, eps=eps)


# openai: guided-diffusion, consistency_models, improved-diffusion


class ResBlock(nn.Module):
    def __init__(self, n_in, n_emb, n_out, scaled, way=None):
        super().__init__()
        self.way, self.scaled = way, scaled
        self.in_layers = nn.Sequential(norm(n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(n_emb, n_out * (2 if scaled else 1)))
        self.out_layers = nn.Sequential(norm(n_out), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip_connection = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):
        move = {
            None: lambda v: v,
            "up": lambda v: F.interpolate(v, scale_factor=2),
            "down": lambda v: F.avg_pool2d(v, 2),
        }
        h = self.in_layers[1](self.in_layers[0](x))
        h, x = move[self.way](h), move[self.way](x)
        h, film = self.in_layers[2](h), self.emb_layers(emb)[..., None, None]
        if self.scaled:
            gain, shift = film.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + gain) + shift)
        else:
            h = self.out_layers(h + film)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    def __init__(self, n, heads, order):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm, self.qkv, self.proj_out = norm(n), nn.Conv1d(n, 3 * n, 1), nn.Conv1d(n, n, 1)

    def forward(self, x, emb):
        B, C, H, W = x.shape
        d, rows = C // self.heads, self.qkv(self.norm(x.flatten(2)))
        if self.order == "new":  # all queries, all keys, all values
            q, k, v = (part.reshape(B, self.heads, d, -1) for part in rows.chunk(3, 1))
        else:  # each head has its queries, keys, values
            q, k, v = rows.reshape(B, self.heads, 3, d, -1).unbind(2)
        w = (q.transpose(-1, -2) @ k / d**0.5).softmax(-1)
        return x + self.proj_out((v @ w.transpose(-1, -2)).reshape(B, C, -1)).reshape(x.shape)


class Halve(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.op = nn.Conv2d(n, n, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Double(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2))


class Stem(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Chain(nn.Sequential):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb)
        return x


class UNetModel(nn.Module):
    """attention: rates of reduction at which it is applied, as the published flags say after division."""

    def __init__(self, width=32, mult=(1, 2), blocks=1, attention=(2,), out=3, classes=None, scaled=True, updown=True,
                 head_dim=32, heads=None, order="new"):  # fmt: skip
        super().__init__()
        self.width, n_emb = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, n_emb), nn.SiLU(), nn.Linear(n_emb, n_emb))
        if classes:
            self.label_emb = nn.Embedding(classes, n_emb)

        def attend(n):
            return Attention(n, heads or n // head_dim, order)

        def res(n_in, n_out, way=None):
            return ResBlock(n_in, n_emb, n_out, scaled, way)

        n = int(width * mult[0])
        self.input_blocks, kept, rate = nn.ModuleList([Chain(Stem(3, n, 3, padding=1))]), [n], 1
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [res(n, int(width * m))]
                n = int(width * m)
                self.input_blocks.append(Chain(*layers, *([attend(n)] if rate in attention else [])))
                kept.append(n)
            if level < len(mult) - 1:
                self.input_blocks.append(Chain(res(n, n, "down") if updown else Halve(n)))
                kept.append(n)
                rate *= 2
        self.middle_block = Chain(res(n, n), attend(n), res(n, n))
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = [res(n + kept.pop(), int(width * m))]
                n = int(width * m)
                layers += [attend(n)] if rate in attention else []
                if level and i == blocks:
                    layers.append(res(n, n, "up") if updown else Double(n))
                    rate //= 2
                self.output_blocks.append(Chain(*layers))
        self.out = nn.Sequential(norm(n), nn.SiLU(), nn.Conv2d(n, out, 3, padding=1))

    def forward(self, x, t, y=None):
        f = torch.exp(-math.log(10000) * torch.arange(self.width // 2) / (self.width // 2))
        emb = self.time_embed(torch.cat([(t[:, None] * f).cos(), (t[:, None] * f).sin()], 1))
        if y is not None:
            emb = emb + self.label_emb(y)
        kept = []
        for block in self.input_blocks:
            x = block(x, emb)
            kept.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], 1), emb)
        return self.out(x)


# score_sde, RectifiedFlow


class NIN(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(n, n)), nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Attn(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.GroupNorm_0 = norm(n, 1e-6, min(n // 4, 32))
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = NIN(n), NIN(n), NIN(n), NIN(n)

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (part(h).flatten(2) for part in (self.NIN_0, self.NIN_1, self.NIN_2))
        w = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return (x + self.NIN_3((v @ w.transpose(1, 2)).reshape(x.shape))) / math.sqrt(2)


def smoothed(x, taps, way):
    """Half or double by an even separable filter; taps (1, 1) average and repeat."""
    line = torch.tensor(taps, dtype=x.dtype)
    each = (torch.outer(line, line) / line.sum() ** 2)[None, None].repeat(x.shape[1], 1, 1, 1)
    pad = (len(taps) - 1) // 2
    if way == "up":
        return F.conv_transpose2d(x, 4 * each, stride=2, padding=pad, groups=x.shape[1])
    return F.conv2d(x, each, stride=2, padding=pad, groups=x.shape[1])


class BigGAN(nn.Module):
    def __init__(self, n_in, n_out, n_emb, way=None, taps=(1, 1)):
        super().__init__()
        self.way, self.taps = way, taps
        self.GroupNorm_0 = norm(n_in, 1e-6, min(n_in // 4, 32))
        self.Conv_0 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.Dense_0 = nn.Linear(n_emb, n_out)
        self.GroupNorm_1 = norm(n_out, 1e-6, min(n_out // 4, 32))
        self.Conv_1 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out or way:
            self.Conv_2 = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, emb):
        h = F.silu(self.GroupNorm_0(x))
        if self.way:
            h, x = smoothed(h, self.taps, self.way), smoothed(x, self.taps, self.way)
        h = self.Conv_0(h) + self.Dense_0(F.silu(emb))[..., None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return (h + (self.Conv_2(x) if hasattr(self, "Conv_2") else x)) / math.sqrt(2)


class Fourier(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.W = nn.Parameter(torch.randn(n) * 0.3, requires_grad=False)

    def forward(self, c):
        angle = 2 * math.pi * c[:, None] * self.W
        return torch.cat([angle.sin(), angle.cos()], 1)


class Shrink(nn.Module):
    """Smooths with three pixels of zeros around in all, then a 3x3 convolution of stride 2."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(n_in, n_out, 3, stride=2)

    def forward(self, x):
        line = torch.tensor([1.0, 3, 3, 1])
        each = (torch.outer(line, line) / 64)[None, None].repeat(x.shape[1], 1, 1, 1)
        return self.Conv2d_0(F.conv2d(F.pad(x, (2, 2, 2, 2)), each, groups=x.shape[1]))


class Combine(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.Conv_0 = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x, y):
        return self.Conv_0(x) + y


class NCSNpp(nn.Module):
    """skips: progressive_input='input_skip' with progressive_combine='sum', and progressive='output_skip'."""

    def __init__(self, size=16, width=16, mult=(1, 2), blocks=2, attention=(8,), fourier=False, pyramid=False, fir=False,
                 skips=False):  # fmt: skip
        super().__init__()
        self.size, self.width, self.mult, self.blocks, self.attention = size, width, mult, blocks, attention
        self.fourier, self.pyramid, self.skips, self.taps = fourier, pyramid, skips, (1, 3, 3, 1) if fir else (1, 1)
        n_emb, taps = 4 * width, (1, 3, 3, 1) if fir else (1, 1)
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 1000))
        parts = [Fourier(width)] if fourier else []
        parts += [
            nn.Linear(width * (2 if fourier else 1), n_emb),
            nn.Linear(n_emb, n_emb),
            nn.Conv2d(3, width, 3, padding=1),
        ]
        n, n_image, kept = width, 3, [width]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                parts.append(BigGAN(n, width * m, n_emb))
                n = width * m
                kept.append(n)
                parts += [Attn(n)] if size >> level in attention else []
            if level < len(mult) - 1:
                parts.append(BigGAN(n, n, n_emb, "down", taps))
                if pyramid:
                    parts.append(Shrink(n_image, n))
                    n_image = n
                if skips:
                    parts.append(Combine(3, n))
                kept.append(n)
        parts += [BigGAN(n, n, n_emb), Attn(n), BigGAN(n, n, n_emb)]
        for level, m in reversed(list(enumerate(mult))):
            for _ in range(blocks + 1):
                parts.append(BigGAN(n + kept.pop(), width * m, n_emb))
                n = width * m
            parts += [Attn(n)] if size >> level in attention else []
            parts += [norm(n, 1e-6, min(n // 4, 32)), nn.Conv2d(n, 3, 3, padding=1)] if skips else []
            parts += [BigGAN(n, n, n_emb, "up", taps)] if level else []
        parts += [] if skips else [norm(n, 1e-6, min(n // 4, 32)), nn.Conv2d(n, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(parts)

    def forward(self, x, c):
        parts = iter(self.all_modules)
        if self.fourier:
            emb = next(parts)(c)
        else:
            half = self.width // 2
            f = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
            emb = torch.cat([(c[:, None] * f).sin(), (c[:, None] * f).cos()], 1)
        emb = next(parts)(emb)
        emb = next(parts)(F.silu(emb))
        image, kept = x, [next(parts)(x)]
        for level in range(len(self.mult)):
            for _ in range(self.blocks):
                h = next(parts)(kept[-1], emb)
                kept.append(next(parts)(h) if self.size >> level in self.attention else h)
            if level < len(self.mult) - 1:
                h = next(parts)(kept[-1], emb)
                if self.pyramid:
                    h = image = (next(parts)(image) + h) / math.sqrt(2)
                if self.skips:
                    image = smoothed(image, self.taps, "down")
                    h = next(parts)(image, h)
                kept.append(h)
        h, picture = next(parts)(kept[-1], emb), None
        h = next(parts)(h)
        h = next(parts)(h, emb)
        for level in reversed(range(len(self.mult))):
            for _ in range(self.blocks + 1):
                h = next(parts)(torch.cat([h, kept.pop()], 1), emb)
            h = next(parts)(h) if self.size >> level in self.attention else h
            if self.skips:
                out = next(parts)(h)
                out = next(parts)(F.silu(out))
                picture = out if picture is None else smoothed(picture, self.taps, "up") + out
            h = next(parts)(h, emb) if level else h
        if self.skips:
            return picture
        h = next(parts)(h)
        return next(parts)(F.silu(h))


def checkpoint(net: NCSNpp, averaged: NCSNpp, decay: float = 0.999) -> dict:
    """What those repositories hand to torch.save: weights behind DataParallel, Adam's state, the average as a list, the step."""
    trained = [p for p in net.parameters() if p.requires_grad]
    state = {
        i: {"step": 5, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)} for i, p in enumerate(trained)
    }
    groups = [{"lr": 2e-4, "betas": (0.9, 0.999), "params": list(range(len(trained)))}]
    shadow = [p.detach().clone() for p in averaged.parameters() if p.requires_grad]
    return {
        "optimizer": {"state": state, "param_groups": groups},
        "model": {f"module.{k}": v for k, v in net.state_dict().items()},
        "ema": {"decay": decay, "num_updates": 5, "shadow_params": shadow},
        "step": 800_000,
    }


# DiT


class DiTAttention(nn.Module):
    def __init__(self, n, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(n, 3 * n), nn.Linear(n, n)

    def forward(self, x):
        B, L, n = x.shape
        rows = self.qkv(x).split(n, -1)
        q, k, v = (part.reshape(B, L, self.heads, -1).transpose(1, 2) for part in rows)
        w = (q @ k.transpose(-1, -2) / (n // self.heads) ** 0.5).softmax(-1)
        return self.proj((w @ v).transpose(1, 2).reshape(B, L, n))


class DiTMlp(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def plain_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


class DiTBlock(nn.Module):
    def __init__(self, n, heads):
        super().__init__()
        self.attn, self.mlp = DiTAttention(n, heads), DiTMlp(n)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(n, 6 * n))

    def forward(self, x, c):
        a, b, g, d, e, f = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        x = x + g * self.attn(plain_norm(x) * (1 + b) + a)
        return x + f * self.mlp(plain_norm(x) * (1 + e) + d)


class FinalLayer(nn.Module):
    def __init__(self, n, out):
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(n, out), nn.Sequential(nn.SiLU(), nn.Linear(n, 2 * n))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, -1)
        return self.linear(plain_norm(x) * (1 + scale) + shift)


class Named(nn.Module):
    """Modules under given names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class DiT(nn.Module):
    def __init__(self, size=8, patch=2, colours=4, width=48, depth=2, heads=4, classes=5, variance=True):
        super().__init__()
        self.size, self.patch, self.colours, self.n_out = size, patch, colours, colours * (2 if variance else 1)
        self.x_embedder = Named(proj=nn.Conv2d(colours, width, patch, patch))
        self.t_embedder = Named(mlp=nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)))
        self.y_embedder = Named(embedding_table=nn.Embedding(classes + 1, width))
        n = size // patch
        column = torch.arange(n * n) % n
        omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        waves = [f(at[:, None] * omega) for at in (column, torch.arange(n * n) // n) for f in (torch.sin, torch.cos)]
        self.pos_embed = nn.Parameter(torch.cat(waves, 1).float()[None], requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * self.n_out)

    def forward(self, x, t, y):
        f = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        c = self.t_embedder.mlp(torch.cat([(t[:, None] * f).cos(), (t[:, None] * f).sin()], 1))
        c = c + self.y_embedder.embedding_table(y)
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        h, n, p = self.final_layer(h, c), self.size // self.patch, self.patch
        out = torch.zeros(len(x), self.n_out, self.size, self.size)
        for i in range(n):
            for j in range(n):
                tile = h[:, i * n + j].reshape(-1, p, p, self.n_out)
                out[:, :, i * p : i * p + p, j * p : j * p + p] = tile.permute(0, 3, 1, 2)
        return out
