"""The lip reader behind LipScore: mouth crops (T, 1, 88, 88) -> features (T, 768), one a frame.

It is the encoder of a visual speech recogniser (auto-avsr): a 3-d convolution and a ResNet-18 look
at each frame, a Conformer (arXiv 2005.08100) looks along time, with relative positions in its
attention. LipScore is the cosine similarity of two videos' features, frame by frame. The text that
the recogniser goes on to read from them is not needed: `decoder.*` and `ctc.*` of the published
file are left out. Parameters are named as there. Shapes: B clips, T frames, D features.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.checkpoint import check_names
from tools.cli import warn
from tools.released import read


@dataclass(frozen=True)
class LipReaderConfig:
    """Sizes; those of the published file by default."""

    frontend_channels: int = 64           # of the first convolution; the ResNet ends with 8 times
    adim: int = 768                       # D
    aheads: int = 12
    eunits: int = 3072                    # of the feed-forward layers
    elayers: int = 12
    cnn_module_kernel: int = 31


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is carried: (N, c_in, h, w) -> (N, c, ...)."""

    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.downsample = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn1(self.conv1(x)))
        return F.silu(self.bn2(self.conv2(y)) + self.downsample(x))


class FrontEnd(nn.Module):
    """Crops (B, 1, T, 88, 88) -> (B, T, 8 F). The first convolution sees five frames at a time."""

    def __init__(self, f: int):
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, f, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False), nn.BatchNorm3d(f),
            nn.SiLU(), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        widths = (f, f, 2 * f, 4 * f, 8 * f)
        self.trunk = nn.Sequential()
        for i in range(1, 5):
            self.trunk.add_module(f"layer{i}", nn.Sequential(
                BasicBlock(widths[i - 1], widths[i], 1 if i == 1 else 2),
                BasicBlock(widths[i], widths[i], 1)))

    def forward(self, crops: Tensor) -> Tensor:
        x = self.frontend3D(crops)                                         # (B, F, T, 22, 22)
        b, _, t = x.shape[:3]
        x = self.trunk(x.transpose(1, 2).flatten(0, 1))                    # (B T, 8F, 3, 3)
        return x.mean((2, 3)).unflatten(0, (b, t))


def positions(t: int, width: int) -> Tensor:
    """Sinusoids (2T-1, D) of the distances T-1 .. -(T-1), query minus key."""
    distance = torch.arange(t - 1, -t, -1.0)
    frequency = 10000 ** (-torch.arange(0, width, 2) / width)
    angle = distance[:, None] * frequency                                  # (2T-1, D/2)
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


class RelativeAttention(nn.Module):
    """Attention whose scores also know how far apart query and key are (Transformer-XL):

        score_ij = ((q_i + u) k_j + (q_i + v) p_(i-j)) / sqrt(width of a head)
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))
        self.linear_out = nn.Linear(width, width)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        t = x.shape[1]
        q, k, v = (linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for linear in (self.linear_q, self.linear_k, self.linear_v))  # (B, heads, T, d)
        p = self.linear_pos(place).unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        by_place = (q + self.pos_bias_v[:, None]) @ p      # (B, heads, T, d) @ (heads, d, 2T-1)
        # Row r of p is distance T-1-r, so that key j of query i is found at r = T-1-i+j.
        steps = torch.arange(t, device=x.device)
        row = (t - 1 - steps[:, None] + steps).expand(by_place.shape[:2] + (t, t))
        bias = by_place.gather(3, row) / math.sqrt(q.shape[-1])            # (B, heads, T, T)
        y = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias)
        return self.linear_out(y.transpose(1, 2).flatten(2))


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(w_1=nn.Linear(width, hidden), relu=nn.ReLU(),
                                     w_2=nn.Linear(hidden, width)))


def convolution(d: int, kernel: int) -> nn.Sequential:
    """Each channel is convolved along time by itself, between two gates: (B, D, T) -> (B, D, T)."""
    return nn.Sequential(OrderedDict(
        pointwise_cov1=nn.Conv1d(d, 2 * d, 1), glu=nn.GLU(1),
        depthwise_conv=nn.Conv1d(d, d, kernel, padding=(kernel - 1) // 2, groups=d),
        norm=nn.BatchNorm1d(d), swish=nn.SiLU(), pointwise_cov2=nn.Conv1d(d, d, 1)))


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, a convolution, the other half; (B, T, D)."""

    def __init__(self, c: LipReaderConfig):
        super().__init__()
        self.norm_ff_macaron = nn.LayerNorm(c.adim, eps=1e-12)
        self.feed_forward_macaron = feed_forward(c.adim, c.eunits)
        self.norm_mha = nn.LayerNorm(c.adim, eps=1e-12)
        self.self_attn = RelativeAttention(c.adim, c.aheads)
        self.norm_conv = nn.LayerNorm(c.adim, eps=1e-12)
        self.conv_module = convolution(c.adim, c.cnn_module_kernel)
        self.norm_ff = nn.LayerNorm(c.adim, eps=1e-12)
        self.feed_forward = feed_forward(c.adim, c.eunits)
        self.norm_final = nn.LayerNorm(c.adim, eps=1e-12)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        x = x + self.feed_forward_macaron(self.norm_ff_macaron(x)) / 2
        x = x + self.self_attn(self.norm_mha(x), place)
        x = x + self.conv_module(self.norm_conv(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.feed_forward(self.norm_ff(x)) / 2
        return self.norm_final(x)


class LipReader(nn.Module):
    """Mouth crops (B, T, 1, 88, 88), normalised as `mouths.normalised` does -> (B, T, D)."""

    def __init__(self, config: LipReaderConfig = LipReaderConfig()):
        super().__init__()
        self.frontend = FrontEnd(config.frontend_channels)
        self.embed = nn.Sequential(nn.Linear(8 * config.frontend_channels, config.adim))
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.elayers))
        self.after_norm = nn.LayerNorm(config.adim, eps=1e-12)

    def forward(self, crops: Tensor) -> Tensor:
        x = self.embed(self.frontend(crops.transpose(1, 2)))               # (B, T, D)
        x = x * math.sqrt(x.shape[2])
        place = positions(x.shape[1], x.shape[2]).to(x)
        for block in self.encoders:
            x = block(x, place)
        return self.after_norm(x)

    @staticmethod
    def load(path: Path, config: LipReaderConfig = LipReaderConfig()) -> "LipReader":
        """The encoder of a published file, `vsr_trlrs2lrs3vox2avsp_base.pth` of auto-avsr, which is
        read without running any code in it. Raises InputError where tensors are missing or have
        other shapes; one line names what is left out."""
        found = read(path)
        weights = {name.removeprefix("encoder."): tensor for name, tensor in found.items()
                   if name.startswith("encoder.")}
        with torch.device("meta"):
            reader = LipReader(config)
        check_names(path, reader, {name: tuple(w.shape) for name, w in weights.items()})
        if left := sorted({name.split(".")[0] + ".*" for name in found} - {"encoder.*"}):
            warn(f"{path}: left out, as LipScore does not use it: {', '.join(left)}")
        reader.load_state_dict(weights, assign=True)
        return reader.float().eval().requires_grad_(False)
