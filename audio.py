"""Sound to tokens: two frozen audio encoders, and how their features become those of video frames.

16 kHz mono sound (L,) becomes tokens (N, 2, D) for the N = ceil(L / 640) frames of a 25 fps video,
each token [speech features ; BEATs features]: WavLM or wav2vec2 (from `transformers`) tells what is
said, BEATs hears everything else. BEATs (Chen et al. 2022) has no maintained implementation and is
written here, with the parameter names of its published file.
"""

import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from tools.media import FRAME_SAMPLES, SAMPLE_RATE, frame_count

MARGIN = 120  # samples beyond each end of a chunk that BEATs' outer patches see


@dataclass
class SpeechConfig:
    """Sizes of WavLM or wav2vec2, named as in `transformers`; the default is that of their bases.

    Kernels and strides are fixed: 50 features a second. wav2vec2 has no use for the last two.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800


@dataclass
class BEATsConfig:
    """Sizes of BEATs, named as in its published configuration; the default is BEATs_iter3+ AS2M."""

    embed_dim: int = 512
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800


@dataclass
class AudioConfig:
    """Both encoders, and how their features are mapped to video frames.

    `mapping`: "aligned" (ours): a token stands for its own 20 ms, in a chunk on a fixed grid, so
    that it does not depend on the recording's length. "released": as the released weights were
    trained, the whole recording at once; in chunks only beyond `max_whole_seconds`.
    Where chunks overlap they are cut in the middle.
    """

    speech: str = "wavlm"  # or "wav2vec2"
    mapping: str = "aligned"
    chunk_frames: int = 240  # 9.6 s
    overlap_frames: int = 40
    max_whole_seconds: float = 120.0
    wavlm: SpeechConfig = field(default_factory=SpeechConfig)  # or wav2vec2's sizes
    beats: BEATsConfig = field(default_factory=BEATsConfig)

    def __post_init__(self):
        kinds = (self.speech, ("wavlm", "wav2vec2")), (self.mapping, ("aligned", "released"))
        for value, known in kinds:
            if value not in known:
                raise ValueError(f"audio: {value!r} is not one of {known}")
        # Chunks, and the used parts of them, must consist of whole time patches of BEATs, 4 frames.
        if self.chunk_frames % 4 or self.overlap_frames not in range(0, self.chunk_frames, 8):
            raise ValueError("audio: chunk_frames must divide by 4, overlap_frames (fewer) by 8")
        far = self.wavlm.max_bucket_distance, self.beats.max_distance
        if any(d <= e.num_buckets // 4 for d, e in zip(far, (self.wavlm, self.beats))):
            raise ValueError("audio: max_bucket_distance, max_distance must exceed num_buckets / 4")

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.wavlm.hidden_size + self.beats.encoder_embed_dim

    @classmethod
    def tiny(cls) -> "AudioConfig":
        """The toy world's: 64 + 64 features."""
        return cls(wavlm=SpeechConfig(64, 3, 4, 256, (32, 48) + (64,) * 5, 16, 4, 32, 80),
                   beats=BEATsConfig(32, 3, 64, 256, 4, 16, 4, 32, 80))

    @classmethod
    def full(cls, speech: str = "wavlm") -> "AudioConfig":
        """The released weights': "wavlm" for keyframes, "wav2vec2" for interpolation."""
        return cls(speech=speech, mapping="released", chunk_frames=1500, overlap_frames=200)


# BEATs

@lru_cache
def _mel_triangles() -> Tensor:
    """128 triangles, equally spaced in mel over 20-8000 Hz, on a 512-point spectrum: (257, 128)."""
    bins = torch.log(1 + torch.arange(257, dtype=torch.float64)[:, None] * (16000 / 512) / 700)
    ends = (math.log(1 + hertz / 700) for hertz in (20, 8000))  # mel is proportional to this
    edges = torch.linspace(*ends, 130, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def fbank(wave: Tensor) -> Tensor:
    """Kaldi's log mel filterbank: sound (B, L), L >= 400, to (B, 1 + (L - 400) // 160, 128)."""
    frames = (wave * 32768).unfold(-1, 400, 160)  # (B, n, 400): 25 ms every 10 ms
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    window = torch.hann_window(400, periodic=False, device=wave.device) ** 0.85  # "Povey"
    power = torch.fft.rfft(frames * window, n=512).abs() ** 2  # (B, n, 257)
    bands = power @ _mel_triangles().to(wave.device)
    return bands.clamp(min=torch.finfo(torch.float32).eps).log()


class PositionalConv(nn.Module):
    """GELU of a grouped convolution over tokens, each tap with its norm: (B, n, C) -> (B, n, C)."""

    def __init__(self, channels: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.randn(channels, channels // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True)
        padding = weight.shape[-1] // 2  # an even kernel gives one output too many
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=padding, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


class GatedAttention(nn.Module):
    """Self-attention whose relative position bias each head and query scales by a gate."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)
        self.grep_linear = nn.Linear(channels // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, d)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        g1, g2 = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, -1)
        gate = g1 * (g2 * self.grep_a - 1) + 2  # (B, heads, n, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=gate * position_bias)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class BEATsLayer(nn.Module):
    """Transformer layer, norms after the residual sums, x scaled up in these ("deep norm")."""

    def __init__(self, config: BEATsConfig):
        super().__init__()
        width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.alpha = (2 * config.encoder_layers) ** 0.25
        self.self_attn = GatedAttention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, position_bias))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class BEATsEncoder(nn.Module):
    """The transformer of BEATs: (B, n, C) to (B, n, C)."""

    def __init__(self, config: BEATsConfig):
        super().__init__()
        self.max_distance = config.max_distance
        width, heads = config.encoder_embed_dim, config.encoder_attention_heads
        conv = PositionalConv(width, config.conv_pos, config.conv_pos_groups)
        self.pos_conv = nn.ModuleList([conv])
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BEATsLayer(config) for _ in range(config.encoder_layers))
        # One table for all layers, kept where the published file has it.
        self.layers[0].self_attn.relative_attention_bias = nn.Embedding(config.num_buckets, heads)

    def position_bias(self, n: int) -> Tensor:
        """Bias (heads, query, key) by distance: exact buckets when near, logarithmic when far."""
        table = self.layers[0].self_attn.relative_attention_bias.weight  # (buckets, heads)
        distance = torch.arange(1 - n, n, device=table.device)  # key - query
        half, exact = len(table) // 2, len(table) // 4
        far = torch.log(distance.abs().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (far * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), far)
        bucket += half * (distance > 0)
        return table[bucket].T.unfold(1, n, 1).flip(1)  # (heads, n, n): row q starts at distance -q

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv[0](x))
        position_bias = self.position_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, position_bias)
        return x


class BEATs(nn.Module):
    """Spectrogram transformer: sound (B, L) in [-1, 1], L >= 2800, to (B, 8 P, C).

    P time patches of 160 ms by 8 mel patches; token = 8 * time patch + mel patch.
    """

    def __init__(self, config: BEATsConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, 16, 16, bias=False)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.encoder = BEATsEncoder(config)

    def forward(self, wave: Tensor) -> Tensor:
        return self.encode((fbank(wave) - 15.41663) / (2 * 6.55582))  # its training statistics

    def encode(self, spectrum: Tensor) -> Tensor:
        """Normalised filterbank (B, n, 128) to features; what is left over of time is dropped."""
        patches = self.patch_embedding(spectrum[:, None])  # (B, C, P, 8)
        x = self.layer_norm(patches.flatten(2).transpose(1, 2))  # (B, 8 P, C)
        return self.encoder(self.post_extract_proj(x))


# WavLM and wav2vec2

def build_speech(config: AudioConfig) -> WavLMModel | Wav2Vec2Model:
    """`transformers`' model of the configured kind and size."""
    sizes = {**asdict(config.wavlm), "layerdrop": 0.0}
    if config.speech == "wavlm":
        return WavLMModel(WavLMConfig(**sizes))
    del sizes["num_buckets"], sizes["max_bucket_distance"]
    return Wav2Vec2Model(Wav2Vec2Config(**sizes))


def normalise(wave: Tensor) -> Tensor:
    """Zero mean and unit variance over the last axis: wav2vec2's input."""
    variance = wave.var(-1, correction=min(1, wave.shape[-1] - 1), keepdim=True)
    return (wave - wave.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-7)


# Features to frames

def cut(wave: Tensor, start: int, stop: int) -> Tensor:
    """Samples start .. stop of (L,), with zeros before its beginning and after its end."""
    inside = wave[max(start, 0) : stop]
    left = max(-start, 0)
    return F.pad(inside, (left, stop - start - left - len(inside)))


def speech_view(wave: Tensor) -> Tensor:
    """(B, 640 n + 2 MARGIN) -> (B, 640 n + 80): what the 2 n features of n frames are to see.

    A feature sees 400 samples, centred on the 320 for which it stands: 40 more on each side.
    """
    return wave[:, MARGIN - 40 : 40 - MARGIN]


def nearest(count: int, wanted: int) -> Tensor:
    """Which of `count` features each of `wanted` tokens takes in the released way: (wanted,)."""
    return torch.arange(wanted) * count // wanted


class AudioEncoder(nn.Module):
    """Both, frozen: 16 kHz sound (L,) in [-1, 1], L >= 1, to tokens (ceil(L / 640), 2, width)."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.speech = build_speech(config)
        self.events = BEATs(config.beats)
        self.whole: tuple[Tensor, Tensor] | None = None  # last heard in one piece, and its tokens
        self.eval().requires_grad_(False)

    def forward(self, wave: Tensor) -> Tensor:
        return self.encode(wave, 0, frame_count(len(wave)))

    @torch.no_grad()
    def encode(self, wave: Tensor, start: int, stop: int) -> Tensor:
        """Tokens of frames start .. stop of the recording, from the chunks that they need. Past its
        end is silence; released: the last frame again, as silence would change how all is heard."""
        given, wave = wave, wave.to(self.events.layer_norm.weight)
        speech_wave = wave
        config, frames = self.config, torch.arange(start, stop)
        if config.mapping == "released":
            frames = frames.clamp(max=frame_count(len(wave)) - 1)
            if config.speech == "wav2vec2":
                speech_wave = normalise(wave)
            if len(wave) <= config.max_whole_seconds * SAMPLE_RATE:
                if self.whole is None or self.whole[0] is not given:  # windows ask one by one
                    self.whole = given, self._piece(speech_wave, wave, 0, len(wave))
                return self.whole[1][frames]
        hop, middle = config.chunk_frames - config.overlap_frames, config.overlap_frames // 2
        tokens, start, stop = [], int(frames[0]), int(frames[-1]) + 1
        while start < stop:
            first = max(start - middle, 0) // hop * hop  # of the chunk whose middle has `start`
            end = min(first + hop + middle, stop)
            a, b = first * FRAME_SAMPLES, (first + config.chunk_frames) * FRAME_SAMPLES
            tokens.append(self._piece(speech_wave, wave, a, b)[start - first : end - first])
            start = end
        return torch.cat(tokens)[frames - frames[0]]

    def _piece(self, speech_wave: Tensor, wave: Tensor, a: int, b: int) -> Tensor:
        """Tokens (n, 2, width) of the samples a .. b, heard in one piece."""
        if self.config.mapping == "released":
            speech = self.speech_released(cut(speech_wave, a, b))
            events = self.events_released(cut(wave, a, b))
        else:
            sound = cut(wave, a - MARGIN, b + MARGIN)[None]
            speech, events = self.speech_aligned(sound)[0], self.events_aligned(sound)[0]
        n = frame_count(b - a)
        return torch.cat([speech[:n], events[:n]], -1)

    def speech_aligned(self, wave: Tensor) -> Tensor:
        """(B, n, 2, C) speech features of sound (B, 640 n + 240), n frames with a margin around."""
        wave = speech_view(wave)
        if self.config.speech == "wav2vec2":
            wave = normalise(wave)
        return self.speech(wave).last_hidden_state.unflatten(1, (-1, 2))

    def events_aligned(self, wave: Tensor) -> Tensor:
        """(B, n, 2, C) BEATs features of the same, n a multiple of 4: the mean over mel patches.

        A time patch sees 2800 samples, centred on the 2560 (4 frames) for which it stands.
        """
        patches = self.events(wave).unflatten(1, (-1, 8)).mean(2)  # (B, n / 4, C)
        return patches.repeat_interleave(8, 1).unflatten(1, (-1, 2))

    def speech_released(self, wave: Tensor) -> Tensor:
        """(T, 2, C) speech features of sound (L,), for wav2vec2 already normalised.

        WavLM: T is N made even; all is a token late and the first one stands twice.
        wav2vec2: T = N, in step.
        """
        n = frame_count(len(wave))
        if self.config.speech == "wavlm":
            n += n % 2
        wave = cut(wave, 0, n * FRAME_SAMPLES)
        features = self.speech(wave[None]).last_hidden_state[0]  # (2 n - 1, C)
        if self.config.speech == "wavlm":
            return features[nearest(len(features), 2 * n)].unflatten(0, (-1, 2))
        return F.pad(features, (0, 0, 0, 1)).unflatten(0, (-1, 2))

    def events_released(self, wave: Tensor) -> Tensor:
        """(T, 2, C) BEATs features of sound (L,), T even: the list of tokens stretched to two a
        frame, mel patches read as time. Sounds too short for a time patch are padded to 6 frames.
        """
        n = frame_count(len(wave))
        n = max(n + n % 2, 6)
        features = self.events(cut(wave, 0, n * FRAME_SAMPLES)[None])[0]  # (8 P, C)
        return features[nearest(len(features), 2 * n)].unflatten(0, (-1, 2))
