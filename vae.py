"""The autoencoder between pictures and latents: Stable Diffusion's encoder, SVD's temporal decoder.

Paper: latent diffusion. Images are RGB (N, 3, H, W) in [-1, 1], latents (N, C, h, w).
The diffusion models see *scaled* latents of about unit variance: times 0.18215 in the released
model, normalised per channel with weights trained here. Parameters are named as in SVD's file.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class VAEConfig:
    """Sizes. Level i has `ch * ch_mult[i]` channels at 1 / 2^i of the picture's resolution. The
    defaults are those of SVD and of the released model: 8-fold, 98 M parameters."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2               # per level; the decoder has one more
    z_channels: int = 4
    num_groups: int = 32                  # of every GroupNorm
    temporal: bool = True                 # SVD's decoder, which also looks along time
    quant_conv: bool = False              # 1x1 convolutions around the latent, in some checkpoints
    post_quant_conv: bool = False
    scale_factor: float = 0.18215
    latent_mean: tuple[float, ...] | None = None    # per channel; given, they replace the factor
    latent_std: tuple[float, ...] | None = None

    @classmethod
    def tiny(cls) -> "VAEConfig":
        """For 64-pixel drawn faces: (3, 64, 64) to (4, 16, 16), 0.7 M parameters."""
        return cls(ch=16, ch_mult=(1, 2, 4), num_res_blocks=1, num_groups=8, temporal=False)


@dataclass
class Posterior:
    """The encoder's Gaussian over latents: mean (the mode) and log-variance, each (N, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """A draw from it, given unit normal noise (N, C, h, w)."""
        return self.mean + self.std * noise


# ---- Blocks. x is (B*T, C, h, w), clips one after the other; `frames` is T. ----

def over_time(f: Callable[[Tensor], Tensor], x: Tensor, frames: int) -> Tensor:
    """Applies f, which works on (B, C, T, h, w), to x (B*T, C, h, w). Frames that stand alone go as
    they are, channels-last, which they would not be as clips of one."""
    if frames == 1:
        return f(x)
    clips = x.unflatten(0, (-1, frames)).transpose(1, 2)      # (B, C, T, h, w)
    return f(clips).transpose(1, 2).flatten(0, 1)             # (B*T, C, h, w)


class TimeConv(nn.Conv3d):
    """Convolution along time alone, (B, C, T, h, w), with zeros beyond the ends; (N, C, h, w) are
    frames alone."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:           # a frame alone meets only the middle tap
            return F.conv2d(x, self.weight[:, :, 1], self.bias)
        return super().forward(x)


class TimeStack(nn.Module):
    """Residual block along time on (B, C, T, h, w), or on frames alone (N, C, h, w); GroupNorm's
    statistics are over all frames of a clip."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-5), nn.SiLU(True),
                                       TimeConv(channels))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-5), nn.SiLU(True),
                                        nn.Identity(), TimeConv(channels))    # Identity: a dropout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_layers(self.in_layers(x))


class ResBlock(nn.Module):
    """Residual block in space; in SVD's decoder one along time is mixed in by a learned scalar."""

    def __init__(self, c_in: int, c_out: int, groups: int, temporal: bool):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.temporal = temporal
        if temporal:
            self.time_stack = TimeStack(c_out, groups)
            self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """The spatial half."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x), inplace=True)))
        h = self.conv2(F.silu(h, inplace=True))
        return h.add_(self.nin_shortcut(x))      # in place, here and above: pictures are large

    def mix_time(self, x: Tensor, frames: int) -> Tensor:
        """The temporal half, of the spatial half's result; apart from it, so that the block's input
        is free by then."""
        if not self.temporal:
            return x
        # s * temporal + (1 - s) * spatial: the other way round than in the diffusion network
        return torch.lerp(x, over_time(self.time_stack, x, frames), self.mix_factor.sigmoid())


class Attention(nn.Module):
    """Self-attention of one head over the pixels of a picture."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))   # (N, 1, h*w, C)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        return x + self.proj_out(h)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, temporal: bool):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups, temporal)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups, temporal)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        x = self.attn_1(self.block_1.mix_time(self.block_1(x), frames))
        return self.block_2.mix_time(self.block_2(x), frames)


class Level(nn.Module):
    """The residual blocks of one resolution."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, temporal: bool):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out, groups, temporal)
                                   for i in range(blocks))

    def run(self, x: Tensor, frames: int) -> Tensor:
        """Not `forward`: calling a module would keep its input, the widest tensor of a decoder,
        until the last block is done."""
        for block in self.block:
            x = block(x)
            x = block.mix_time(x, frames)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = [config.ch * m for m in config.ch_mult], config.num_groups
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(c_in, c, config.num_res_blocks, groups, temporal=False)
            for c_in, c in zip([config.ch, *channels], channels))
        for level, c in zip(self.down[:-1], channels):
            level.downsample = nn.Sequential(OrderedDict(      # padded right and bottom only
                pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(c, c, 3, stride=2)))
        self.mid = Middle(channels[-1], groups, temporal=False)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_channels, 3, padding=1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> activations of each level (N, C_i, H / 2^i, W / 2^i)."""
        found = [self.down[0].run(self.conv_in(x), 1)]
        for finer, level in zip(self.down, self.down[1:]):
            found.append(level.run(finer.downsample(found[-1]), 1))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(self.mid(self.levels(x)[-1], 1))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = [config.ch * m for m in config.ch_mult], config.num_groups
        self.conv_in = nn.Conv2d(config.z_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], groups, config.temporal)
        self.up = nn.ModuleList(             # numbered from the finest, run from the coarsest
            Level(c_in, c, config.num_res_blocks + 1, groups, config.temporal)
            for c_in, c in zip([*channels[1:], channels[-1]], channels))
        for level, c in zip(self.up[1:], channels[1:]):
            level.upsample = nn.Sequential(OrderedDict(
                nearest=nn.Upsample(scale_factor=2), conv=nn.Conv2d(c, c, 3, padding=1)))
        self.norm_out = nn.GroupNorm(groups, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        if config.temporal:
            self.conv_out.time_mix_conv = TimeConv(3)

    def forward(self, z: Tensor, frames: int) -> Tensor:
        z = z.contiguous(memory_format=torch.channels_last)    # a CPU's convolutions copy all else
        x = self.up[-1].run(self.mid(self.conv_in(z), frames), frames)
        for i in reversed(range(len(self.up) - 1)):
            x = self.up[i].run(self.up[i + 1].upsample(x), frames)
        x = self.conv_out(F.silu(self.norm_out(x), inplace=True))
        if hasattr(self.conv_out, "time_mix_conv"):
            x = over_time(self.conv_out.time_mix_conv, x, frames)
        return x


class VAE(nn.Module):
    """Encoder, decoder, and the scaling between their latents and those of the diffusion models."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config, z = config, config.z_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.post_quant_conv else nn.Identity()
        self.decoder = Decoder(config)

    def encode(self, images: Tensor) -> Posterior:
        """Images (N, 3, H, W) in [-1, 1] -> Gaussian over unscaled latents (N, C, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor, frames: int = 1) -> Tensor:
        """Unscaled latents (N, C, h, w) -> images (N, 3, H, W), not clipped. N is clips times
        `frames`; frames = 1 decodes each frame alone, the released model's way."""
        return self.decoder(self.post_quant_conv(z), frames)

    def _mean_std(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.config.latent_mean or (0.0,)
        std = self.config.latent_std or (1 / self.config.scale_factor,)
        return z.new_tensor(mean)[:, None, None], z.new_tensor(std)[:, None, None]   # (C, 1, 1)

    def scale(self, z: Tensor) -> Tensor:
        """The autoencoder's latents (..., C, h, w) -> those of the diffusion models."""
        mean, std = self._mean_std(z)
        return (z - mean) / std

    def unscale(self, z: Tensor) -> Tensor:
        """Inverse of `scale`."""
        mean, std = self._mean_std(z)
        return z * std + mean

    def to_latents(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> scaled latents (N, C, h, w): the mode, or with unit
        normal noise of that shape a sample, as in training."""
        posterior = self.encode(images)
        return self.scale(posterior.mean if noise is None else posterior.sample(noise))

    def to_images(self, latents: Tensor, batch: int = 16) -> Tensor:
        """Scaled latents (N, C, h, w) -> images (N, 3, H, W) in [-1, 1], `batch` at a time."""
        return torch.cat([self.decode(self.unscale(z)).clamp(-1, 1) for z in latents.split(batch)])


def perceptual(vae: VAE, a: Tensor, b: Tensor) -> Tensor:
    """Distance of images (N, 3, H, W) by the encoder's features, built like LPIPS: (N,)."""
    pairs = zip(vae.encoder.levels(a), vae.encoder.levels(b))
    return sum((F.normalize(p, dim=1) - F.normalize(q, dim=1)).square().sum(1).mean((1, 2))
               for p, q in pairs)


def brightness_error(vae: VAE, images: Tensor) -> Tensor:
    """How badly the autoencoder keeps each of the images (N, 3, H, W) in [-1, 1]: (N,), the mean
    absolute error of brightness over 2 x 2 pixels. Colours and the finest edges suffer in pictures
    like those of training, too; coarser brightness suffers in others alone."""
    error = (vae.to_images(vae.to_latents(images)) - images).mean(1, keepdim=True)
    return F.avg_pool2d(error, 2).abs().mean((1, 2, 3))
