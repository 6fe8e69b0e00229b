"""The network: Stable Video Diffusion's spatio-temporal UNet (arXiv 2311.15127).

In: noisy latents with their condition channels (B*T, C_in, h, w); for each frame c_noise, emotion
and its audio embedding; for each window the audio embeddings of all its T frames. Out: F of the
denoiser, (B*T, C, h, w). Each block processes every frame on its own, then mixes along time, and
blends the two results by a learned scalar.

Parameters are named as in the released checkpoint (after `model.diffusion_model.`).
B windows of T frames, C channels, h x w latent pixels, D_c context width, E width of `emb`.
Row b*T + t of a tensor (B*T, ...) is frame t of window b.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class UNetConfig:
    """Sizes of the network; the defaults are the released keyframe model's (1.5e9 parameters)."""

    in_channels: int = 8  # noisy 4 + identity 4; interpolation: noisy 4 + sequence 4 + mask 1
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)  # downsampling factors that have attention
    num_head_channels: int = 64
    context_dim: int = 1024  # D_c, the width of an audio embedding
    emotion_dim: int = 512  # width of the emotion vector; 0 in the interpolation stage
    num_groups: int = 32  # of GroupNorm

    @staticmethod
    def tiny(**overrides) -> "UNetConfig":
        """For 16 x 16 latents."""
        # A group has several channels: in groups of one GroupNorm would erase what the embedding
        # adds, a constant to each channel. Attention is where a CPU can afford it.
        sizes = UNetConfig(model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1,
                           attention_resolutions=(4,), num_head_channels=32, context_dim=96,
                           emotion_dim=64, num_groups=8)
        return replace(sizes, **overrides)


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Sinusoidal features of any real numbers: (...) -> (..., width), cosines first, base 10000."""
    # f_k = 10000^(-k / (width / 2)), k = 0 to width / 2 - 1
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=values.device) / half)
    angles = values[..., None].float() * frequencies  # (..., width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# Tensors are kept channels-last in memory, (B*T, h, w, C). The frames of a window lie one after
# another there, so that these two functions move nothing: they only rename the axes.

def to_time(x: Tensor, frames: int) -> Tensor:
    """(B*T, C, h, w) -> (B, C, T, h*w)."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c)  # (B, T, h*w, C)
    return x.permute(0, 3, 1, 2)  # (B, C, T, h*w)


def to_space(x: Tensor, h: int, w: int) -> Tensor:
    """(B, C, T, h*w) -> (B*T, C, h, w), the inverse of `to_time`."""
    b, c, t, _ = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b * t, h, w, c)  # (B*T, h, w, C)
    return x.permute(0, 3, 1, 2)  # (B*T, C, h, w)


class GroupNorm(nn.GroupNorm):
    """GroupNorm, computed on contiguous memory."""

    # On CPUs torch's channels-last kernel computes the variance as a difference of two large sums,
    # which costs a decimal digit where a group has thousands of values.
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class TimeConv(nn.Conv3d):
    """Convolution over time alone, in which each frame sees the one before and the one after."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T, h*w)
        # The weight has the 3-d shape of SVD's, (O, I, 3, 1, 1); a 2-d convolution does the same.
        return F.conv2d(x, self.weight.squeeze(-1), self.bias, padding=(1, 0))


class Mixer(nn.Module):
    """The learned blend s * spatial + (1 - s) * temporal, s = sigmoid(mix_factor)."""

    def __init__(self):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([0.5]))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        return torch.lerp(temporal, spatial, self.mix_factor.sigmoid().to(spatial.dtype))


class ResBlock(nn.Module):
    """Norm, SiLU, conv, + embedding, norm, SiLU, conv, + input; over pixels, or over time."""

    def __init__(self, channels: int, out_channels: int, emb_dim: int, groups: int,
                 temporal: bool = False):
        super().__init__()

        def conv(i: int, o: int) -> nn.Module:
            return TimeConv(i, o) if temporal else nn.Conv2d(i, o, 3, padding=1)

        self.temporal = temporal
        self.in_layers = nn.Sequential(GroupNorm(groups, channels), nn.SiLU(inplace=True),
                                       conv(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))
        # Identity keeps the index of the original Dropout.
        self.out_layers = nn.Sequential(
            GroupNorm(groups, out_channels), nn.SiLU(inplace=True), nn.Identity(),
            conv(out_channels, out_channels))
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B*T, C, h, w), or (B, C, T, h*w) if temporal (with norms over all T); emb (B*T, E),
        one vector a frame."""
        # The embedding adds one number to each channel of a frame, the same at every pixel.
        shift = self.emb_layers(emb)[:, :, None, None]  # (B*T, C', 1, 1)
        if self.temporal:
            shift = to_time(shift, x.shape[2])  # (B, C', T, 1)
        return self.skip_connection(x) + self.out_layers(self.in_layers(x) + shift)


class SpatioTemporalResBlock(ResBlock):
    """A spatial residual block and, on its result, a temporal one; their blend."""

    def __init__(self, channels: int, out_channels: int, emb_dim: int, groups: int):
        super().__init__(channels, out_channels, emb_dim, groups)
        self.time_stack = ResBlock(out_channels, out_channels, emb_dim, groups, temporal=True)
        self.time_mixer = Mixer()

    def forward(self, x: Tensor, emb: Tensor, frames: int | None) -> Tensor:
        x = super().forward(x, emb)  # (B*T, C', h, w)
        if frames is None:  # the frames have nothing to do with each other
            return x
        temporal = self.time_stack(to_time(x, frames), emb)  # (B, C', T, h*w)
        return self.time_mixer(x, to_space(temporal, *x.shape[2:]))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v of sequences x (rows, n, C), in heads of d channels, to themselves
    or to a context (rows, m, D_c)."""

    def __init__(self, dim: int, head_dim: int, context_dim: int | None = None):
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (rows, heads, n or m, d)
                   for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        y = F.scaled_dot_product_attention(q, k, v)  # (rows, heads, n, d)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (rows, n, C)


class GEGLU(nn.Module):
    """A linear layer to twice the width, of which one half is gated by the GELU of the other."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)  # in place, for these are the network's widest tensors


def feed_forward(dim: int) -> nn.Module:
    # Identity keeps the index of the original Dropout.
    layers = GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)
    return nn.Sequential(OrderedDict(net=nn.Sequential(*layers)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the audio embeddings and a feed-forward network. A
    temporal block has another such network in front."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, temporal: bool = False):
        super().__init__()
        if temporal:
            self.norm_in = nn.LayerNorm(dim)
            self.ff_in = feed_forward(dim)
        self.temporal = temporal
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, head_dim, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = feed_forward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B*s, n, C): a window's s sequences of n, which are the pixels of each frame (s = T,
        n = h*w) or, if temporal, the frames at each pixel; context (B, T, D_c)."""
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        # Every pixel of every frame attends to the same T audio embeddings of its window. So all
        # queries of a window form one long sequence; keys and values are computed only once.
        queries = self.norm2(x).reshape(len(context), -1, x.shape[-1])  # (B, s*n, C)
        x = x + self.attn2(queries, context).view_as(x)  # (B*s, n, C)
        return x + self.ff(self.norm3(x))


class SpatioTemporalTransformer(nn.Module):
    """A transformer over the pixels of each frame and, on its result, one over the frames at each
    pixel; their blend."""

    def __init__(self, dim: int, context_dim: int, head_dim: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, dim, eps=1e-6)  # SVD's; the residual blocks have 1e-5
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(dim, context_dim, head_dim)])
        self.time_pos_embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(),
                                            nn.Linear(4 * dim, dim))
        self.time_stack = nn.ModuleList(
            [TransformerBlock(dim, context_dim, head_dim, temporal=True)])
        self.time_mixer = Mixer()
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, frames: int | None) -> Tensor:
        n, c, h, w = x.shape  # n = B*T
        a = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B*T, h*w, C)
        a = self.transformer_blocks[0](a, context)
        if frames is not None:
            # Attention cannot tell the order of its elements, so each frame is given its number.
            numbers = torch.arange(frames, device=x.device)
            position = self.time_pos_embed(sinusoid(numbers, c).to(x.dtype))  # (T, C)
            b = a.view(-1, frames, h * w, c) + position[:, None]  # (B, T, h*w, C)
            b = b.transpose(1, 2).reshape(-1, frames, c)  # (B*h*w, T, C)
            b = self.time_stack[0](b, context)
            b = b.view(-1, h * w, frames, c).transpose(1, 2)  # (B, T, h*w, C)
            a = self.time_mixer(a, b.reshape(n, h * w, c))  # (B*T, h*w, C)
        return x + self.proj_out(a).transpose(1, 2).view(n, c, h, w)  # (B*T, C, h, w)


def run(layer: nn.Module, x: Tensor, emb: Tensor, context: Tensor, frames: int | None) -> Tensor:
    """Calls a layer of the network with those of the arguments that it takes."""
    if isinstance(layer, SpatioTemporalResBlock):
        return layer(x, emb, frames)
    if isinstance(layer, SpatioTemporalTransformer):
        return layer(x, context, frames)
    return layer(x)


class UNet(nn.Module):
    """The spatio-temporal UNet; see the module's docstring."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        c, m, groups = config, config.model_channels, config.num_groups
        emb_dim = 4 * m

        def mlp(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))

        def res(i: int, o: int) -> nn.Module:
            return SpatioTemporalResBlock(i, o, emb_dim, groups)

        def attention(dim: int) -> nn.Module:
            return SpatioTemporalTransformer(dim, c.context_dim, c.num_head_channels, groups)

        self.time_embed = mlp(m)
        self.label_emb = nn.Sequential(mlp(c.emotion_dim + c.context_dim))  # named label_emb.0.*

        # The way down. `stored` holds the channels of what each block hands over to the way up.
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(c.in_channels, m, 3, padding=1)])])
        channels, scale, stored = m, 1, [m]
        for level, mult in enumerate(c.channel_mult):
            for _ in range(c.num_res_blocks):
                layers = [res(channels, mult * m)]
                channels = mult * m
                if scale in c.attention_resolutions:
                    layers.append(attention(channels))
                self.input_blocks.append(nn.ModuleList(layers))
                stored.append(channels)
            if level < len(c.channel_mult) - 1:
                down = OrderedDict(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                self.input_blocks.append(nn.ModuleList([nn.Sequential(down)]))
                stored.append(channels)
                scale *= 2

        self.middle_block = nn.ModuleList(
            [res(channels, channels), attention(channels), res(channels, channels)])

        # The way up. Each block takes, beside its input, the latest stored tensor left; a
        # level has one block more than on the way down, because the downsampling stores one, too.
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            for i in range(c.num_res_blocks + 1):
                layers = [res(channels + stored.pop(), mult * m)]
                channels = mult * m
                if scale in c.attention_resolutions:
                    layers.append(attention(channels))
                if level > 0 and i == c.num_res_blocks:
                    layers.append(nn.Sequential(OrderedDict(
                        nearest=nn.Upsample(scale_factor=2),
                        conv=nn.Conv2d(channels, channels, 3, padding=1))))
                    scale //= 2
                self.output_blocks.append(nn.ModuleList(layers))

        self.out = nn.Sequential(GroupNorm(groups, m), nn.SiLU(),
                                 nn.Conv2d(m, c.out_channels, 3, padding=1))
        self.zero_init()

    def zero_init(self) -> None:
        """Sets last layers to zero, so that residual blocks and transformers add nothing at first,
        and F is 0. Ours, not SVD's: also those inside of temporal transformers."""
        # So the temporal half adds nothing at first: when it joins a network that is trained on
        # single images, this goes on computing what it computed before.
        last = [self.out[2]]
        for module in self.modules():
            if isinstance(module, ResBlock):
                last.append(module.out_layers[3])
            elif isinstance(module, TransformerBlock) and module.temporal:
                last += [module.ff_in.net[2], module.attn1.to_out[0], module.attn2.to_out[0],
                         module.ff.net[2]]
            elif isinstance(module, SpatioTemporalTransformer):
                last += [module.time_pos_embed[2], module.proj_out]
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, emotion: Tensor | None,
                frames: int | None) -> Tensor:
        """F(c_in x, c_noise, cond) of the denoiser.

        x (B*T, C_in, h, w); c_noise (B*T,); context (B, T, D_c), one embedding a frame; emotion
        (B*T, emotion_dim), or None in the interpolation stage. frames = T; None runs the spatial
        half alone (`spatial_only`), on single frames, T = 1. Returns (B*T, out_channels, h, w).
        """
        # Audio enters twice. As context, every frame attends to all T audio embeddings. But these
        # carry no position, so a frame learns which one is its own from another way in:
        #     e = MLP(sinusoid(c_noise)) + MLP([emotion ; own audio embedding])
        own = context.flatten(0, 1)  # (B*T, D_c)
        label = own if emotion is None else torch.cat([emotion, own], dim=1)
        features = sinusoid(c_noise, self.config.model_channels).to(x.dtype)
        emb = self.time_embed(features) + self.label_emb(label)  # (B*T, E)

        # The layers are called one by one in here, not by a module for each block, so that the
        # input of a block is free after its first layer.
        x = x.contiguous(memory_format=torch.channels_last)
        stored = []
        for block in self.input_blocks:
            for layer in block:
                x = run(layer, x, emb, context, frames)
            stored.append(x)
        for layer in self.middle_block:
            x = run(layer, x, emb, context, frames)
        for block in self.output_blocks:
            x = torch.cat([x, stored.pop()], dim=1)  # (B*T, C + C_stored, h, w)
            for layer in block:
                x = run(layer, x, emb, context, frames)
        return self.out(x)
