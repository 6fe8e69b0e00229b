"""The autoencoder between images and latents: Stable Diffusion's encoder, SVD's temporal decoder.

Paper: latent diffusion. Images are RGB (N, 3, H, W) in [-1, 1], latents (N, C, h, w). The diffusion
models see *scaled* latents of about unit variance: the released model multiplies them by 0.18215,
in `weights/tiny` they are normalised per channel. Parameters are named as in SVD's file.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class VAEConfig:
    """Sizes. Level i has `ch * ch_mult[i]` channels at 1 / 2^i of the image's resolution (of
    patches of pixels, where patch > 1). Defaults: SVD's and the released model's, h = H / 8, 98 M
    parameters."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2               # per level; the decoder has one more
    z_channels: int = 4
    num_groups: int = 32                  # of every GroupNorm
    temporal: bool = True                 # SVD's decoder, which also looks along time
    patch: int = 1                        # patch x patch pixels are one for the networks
    quant_conv: bool = False              # some checkpoints have 1x1 convolutions at the latents
    post_quant_conv: bool = False
    scale_factor: float = 0.18215
    latent_mean: tuple[float, ...] | None = None    # (C,); None: 0
    latent_std: tuple[float, ...] | None = None     # (C,); None: 1 / scale_factor

    @classmethod
    def tiny(cls, size: int = 64) -> "VAEConfig":
        """(3, 64, 64) -> (4, 16, 16), 0.7 M parameters, or (3, 128, 128) -> (8, 16, 16), 1.5 M."""
        sizes = cls(ch=16, ch_mult=(1, 2, 4), num_res_blocks=1, num_groups=8, temporal=False)
        return sizes if size == 64 else replace(sizes, ch=24, z_channels=8, patch=size // 64)


@dataclass
class Posterior:
    """The encoder's Gaussian over latents: mean and log-variance, each (N, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """A sample z = mean + std * noise, given unit normal noise (N, C, h, w)."""
        return self.mean + self.std * noise


# Diffusion on pixels would spend most of its work on texture that an eye hardly sees. So it works
# on latents instead: the encoder halves the sides of a picture a few times and keeps a handful of
# channels, and the decoder, which is trained to undo that, puts the texture back.

# ---- Blocks: x is (B*T, C, h, w), window after window; only along time (B, C, T, h, w) ----

def over_time(f: Callable[[Tensor], Tensor], x: Tensor, frames: int) -> Tensor:
    """Applies f, which works on (B, C, T, h, w) or on single frames, to x (B*T, C, h, w)."""
    # Single frames need no time axis. They go as they are, channels-last, which a CPU does faster.
    if frames == 1:
        return f(x)
    windows = x.unflatten(0, (-1, frames)).transpose(1, 2)    # (B, C, T, h, w)
    return f(windows).transpose(1, 2).flatten(0, 1)           # (B*T, C, h, w)


class TimeConv(nn.Conv3d):
    """Convolution along time alone, of windows (B, C, T, h, w) with zeros beyond their ends, or of
    single frames (N, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        # A single frame has zeros before and after it, so only the kernel's middle tap counts.
        if x.ndim == 4:
            return F.conv2d(x, self.weight[:, :, 1], self.bias)
        return super().forward(x)


class TimeStack(nn.Module):
    """Residual block along time, on windows (B, C, T, h, w) or on single frames (N, C, h, w).
    GroupNorm's statistics are over all frames of a window."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-5), nn.SiLU(True),
                                       TimeConv(channels))
        # Identity keeps the index of the original Dropout.
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-5), nn.SiLU(True),
                                        nn.Identity(), TimeConv(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_layers(self.in_layers(x))


class ResBlock(nn.Module):
    """Residual block in space; in SVD's decoder a learned scalar blends it with one along time."""

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
        # It works in place where it can, for at full resolution each tensor is large.
        y = self.norm2(self.conv1(F.silu(self.norm1(x), inplace=True)))
        y = self.conv2(F.silu(y, inplace=True))
        return y.add_(self.nin_shortcut(x))

    def mix_time(self, x: Tensor, frames: int) -> Tensor:
        """The temporal half. A separate call, so that the spatial half's input is freed first."""
        if not self.temporal:
            return x
        # s * temporal + (1 - s) * spatial; in the diffusion network it is the other way round.
        return torch.lerp(x, over_time(self.time_stack, x, frames), self.mix_factor.sigmoid())


class Attention(nn.Module):
    """Self-attention of one head over the pixels of a frame."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # Convolutions see a few pixels around. Here each pixel sees all of them, affordable
        # only at the latents' resolution: the cost grows with the square of their number.
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))   # (N, 1, h*w, C)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]         # (N, h*w, C)
        return x + self.proj_out(y.mT.reshape(x.shape))           # (N, C, h, w)


class Middle(nn.Module):
    """Two residual blocks at the latents' resolution, with attention between them."""

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
        """Applies the blocks. It is not named `forward`, because calling a module would keep its
        input, the widest tensor of a decoder, in memory until the last block is done."""
        for block in self.block:
            x = block(x)
            x = block.mix_time(x, frames)
        return x


class Encoder(nn.Module):
    """Images (N, 3, H, W) -> mean and log-variance of their latents, (N, 2C, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = [config.ch * m for m in config.ch_mult], config.num_groups
        self.to_patches = nn.PixelUnshuffle(config.patch)         # (3, H, W) -> (3p^2, H/p, W/p)
        self.conv_in = nn.Conv2d(3 * config.patch ** 2, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(c_in, c, config.num_res_blocks, groups, temporal=False)
            for c_in, c in zip([config.ch, *channels], channels))
        # As in the original, only the right and the bottom are padded before downsampling.
        for level, c in zip(self.down[:-1], channels):
            level.downsample = nn.Sequential(OrderedDict(
                pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(c, c, 3, stride=2)))
        self.mid = Middle(channels[-1], groups, temporal=False)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_channels, 3, padding=1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) -> the features of each level, (N, C_i, H_i, W_i)."""
        found = [self.down[0].run(self.conv_in(self.to_patches(x)), 1)]
        for finer, level in zip(self.down, self.down[1:]):
            found.append(level.run(finer.downsample(found[-1]), 1))
        return found

    def forward(self, x: Tensor) -> Tensor:
        # Of the coarsest level's features come two numbers for each latent: where its Gaussian is,
        # and the logarithm of how wide it is.
        return self.conv_out(F.silu(self.norm_out(self.mid(self.levels(x)[-1], 1))))


class Decoder(nn.Module):
    """Latents (N, C, h, w) -> images (N, 3, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = [config.ch * m for m in config.ch_mult], config.num_groups
        self.conv_in = nn.Conv2d(config.z_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], groups, config.temporal)
        # Levels are numbered from the finest, as in the encoder, but run from the coarsest.
        self.up = nn.ModuleList(
            Level(c_in, c, config.num_res_blocks + 1, groups, config.temporal)
            for c_in, c in zip([*channels[1:], channels[-1]], channels))
        for level, c in zip(self.up[1:], channels[1:]):
            level.upsample = nn.Sequential(OrderedDict(
                nearest=nn.Upsample(scale_factor=2), conv=nn.Conv2d(c, c, 3, padding=1)))
        self.norm_out = nn.GroupNorm(groups, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], 3 * config.patch ** 2, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(config.patch)
        if config.temporal:
            self.conv_out.time_mix_conv = TimeConv(3)

    def forward(self, z: Tensor, frames: int) -> Tensor:
        # From the coarsest level to the finest; between them each pixel becomes four.
        z = z.contiguous(memory_format=torch.channels_last)       # a CPU's fastest layout
        x = self.up[-1].run(self.mid(self.conv_in(z), frames), frames)
        for i in reversed(range(len(self.up) - 1)):
            x = self.up[i].run(self.up[i + 1].upsample(x), frames)
        x = self.to_pixels(self.conv_out(F.silu(self.norm_out(x), inplace=True)))
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
        # A Gaussian, and not a point: in training the decoder gets samples of it, and so learns to
        # make a face of whatever lies near. Where the diffusion errs a little, that is forgiven.
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor, frames: int = 1) -> Tensor:
        """Unscaled latents (N, C, h, w), N = B*T, -> images (N, 3, H, W), not clipped. `frames` is
        T. The released model and this code pass 1: each frame is decoded on its own. Only parity
        tests pass more."""
        return self.decoder(self.post_quant_conv(z), frames)

    # The networks above work on unscaled latents z, the diffusion models on scaled ones,
    #     x = (z - mean) / std,  by default with mean = 0 and 1 / std = 0.18215.
    # A noise level sigma means the same everywhere only if the data have the same size everywhere.

    def _mean_std(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.config.latent_mean or (0.0,)
        std = self.config.latent_std or (1 / self.config.scale_factor,)
        return z.new_tensor(mean)[:, None, None], z.new_tensor(std)[:, None, None]   # (C, 1, 1)

    def scale(self, z: Tensor) -> Tensor:
        """Unscaled latents (..., C, h, w) -> scaled ones."""
        mean, std = self._mean_std(z)
        return (z - mean) / std

    def unscale(self, x: Tensor) -> Tensor:
        """Scaled latents (..., C, h, w) -> unscaled ones."""
        mean, std = self._mean_std(x)
        return x * std + mean

    def to_latents(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> scaled latents (N, C, h, w), the Gaussian's mean."""
        return self.scale(self.encode(images).mean)

    def to_images(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) -> images (N, 3, H, W) in [-1, 1], 4 at a time."""
        return torch.cat([self.decode(self.unscale(x)).clamp(-1, 1) for x in latents.split(4)])


def perceptual(vae: VAE, a: Tensor, b: Tensor) -> Tensor:
    """The distance of images a and b (N, 3, H, W) in the encoder's features: (N,)."""
    # As in LPIPS: each pixel's features are scaled to unit length, and squared differences are
    # averaged over the pixels and summed over the levels.
    pairs = zip(vae.encoder.levels(a), vae.encoder.levels(b))
    return sum((F.normalize(p, dim=1) - F.normalize(q, dim=1)).square().sum(1).mean((1, 2))
               for p, q in pairs)


def brightness_error(vae: VAE, images: Tensor) -> Tensor:
    """How badly the autoencoder keeps each of the images (N, 3, H, W) in [-1, 1]: (N,). This is the
    error of the mean brightness in each of 8 x 8 cells, averaged over 3 x 3 neighbouring cells
    where it is worst. Colours and edges suffer in training faces, too; coarse brightness suffers
    only in unfamiliar ones. The worst place counts, as a plain background is kept well around any
    face."""
    error = (vae.to_images(vae.to_latents(images)) - images).mean(1, keepdim=True)
    fields = F.adaptive_avg_pool2d(error, 8).abs()        # (N, 1, 8, 8)
    return F.avg_pool2d(fields, 3, stride=1).amax((1, 2, 3))
