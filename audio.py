"""Audio to audio tokens: two frozen encoders, and how their features become those of video frames.

L samples of 16 kHz mono audio become audio tokens (N, 2, D_a), two for each of N = ceil(L / 640)
video frames at 25 fps. Each is [speech features ; BEATs features]: WavLM or wav2vec2 (both from
`transformers`) tells what is said, and BEATs tells everything else, such as laughs and sighs. BEATs
(arXiv 2212.09058) has no maintained implementation, so it is written here, with the parameter names
of its published file. B recordings, n video frames (inside an encoder, rows or tokens), C features.
"""

import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.media import FRAME_SAMPLES, SAMPLE_RATE, frame_count

# A time patch of BEATs stands for 2560 samples but sees 2800: this many more on each side.
MARGIN = 120


@dataclass
class SpeechConfig:
    """Sizes of WavLM or wav2vec2, named as in `transformers`. The defaults are those of both base
    models. Kernels and strides are fixed: 50 features a second. wav2vec2 ignores the last two."""

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
    """Sizes of BEATs, named as in its published file. The defaults are BEATs_iter3+ AS2M's."""

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
    """Both encoders, and how their features are mapped to video frames. `AudioConfig()` has the
    released sizes with our mapping; the released model's is `AudioConfig.full()`."""

    speech: str = "wavlm"  # or "wav2vec2"
    # "aligned" (ours): an audio token stands for its own 20 ms (BEATs' part of it for the 160 ms of
    # a patch, which four frames share), and is computed in a chunk of a fixed grid, so that sound
    # more than 9.6 s away does not matter. "released": the whole recording is encoded at once,
    # and in chunks only where it is longer than max_whole_seconds.
    mapping: str = "aligned"
    chunk_frames: int = 240  # video frames, 9.6 s
    overlap_frames: int = 40  # of neighbouring chunks, which are cut in the middle of it
    max_whole_seconds: float = 120.0
    wavlm: SpeechConfig = field(default_factory=SpeechConfig)  # or the sizes of wav2vec2
    beats: BEATsConfig = field(default_factory=BEATsConfig)

    def __post_init__(self):
        kinds = (self.speech, ("wavlm", "wav2vec2")), (self.mapping, ("aligned", "released"))
        for value, known in kinds:
            if value not in known:
                raise ValueError(f"audio: {value!r} is not one of {known}")
        # Chunks, and the used parts of them, must consist of whole time patches of BEATs, 4 frames.
        if self.chunk_frames % 4 or self.overlap_frames not in range(0, self.chunk_frames, 8):
            raise ValueError("audio: 4 must divide chunk_frames, and 8 overlap_frames (fewer)")
        far = self.wavlm.max_bucket_distance, self.beats.max_distance
        if any(d <= e.num_buckets // 4 for d, e in zip(far, (self.wavlm, self.beats))):
            raise ValueError("audio: max_bucket_distance, max_distance must exceed num_buckets / 4")

    @property
    def width(self) -> int:
        """D_a, the width of an audio token."""
        return self.wavlm.hidden_size + self.beats.encoder_embed_dim

    @classmethod
    def tiny(cls) -> "AudioConfig":
        """The drawn world's encoders, with D_a = 64 + 64."""
        return cls(
            wavlm=SpeechConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                               intermediate_size=256, conv_dim=(32, 48, 64, 64, 64, 64, 64),
                               num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                               num_buckets=32, max_bucket_distance=80),
            beats=BEATsConfig(embed_dim=32, encoder_layers=3, encoder_embed_dim=64,
                              encoder_ffn_embed_dim=256, encoder_attention_heads=4, conv_pos=16,
                              conv_pos_groups=4, num_buckets=32, max_distance=80))

    @classmethod
    def full(cls, speech: str = "wavlm") -> "AudioConfig":
        """The released model's: "wavlm" for keyframes, "wav2vec2" for interpolation."""
        return cls(speech=speech, mapping="released", chunk_frames=1500, overlap_frames=200)


# ---- BEATs ----
# The filterbank is written by hand, because torchaudio's last release refuses to be imported beside
# newer PyTorch. It is tested against torchaudio's numbers (fixture `beats`).

@lru_cache
def _mel_triangles() -> Tensor:
    """128 triangles, equally spaced in mel over 20-8000 Hz, on a 512-point spectrum: (257, 128)."""
    # mel = 1127 ln(1 + hertz / 700); the factor cancels in the triangles' slopes.
    bins = torch.log(1 + torch.arange(257, dtype=torch.float64)[:, None] * (16000 / 512) / 700)
    ends = (math.log(1 + hertz / 700) for hertz in (20, 8000))
    edges = torch.linspace(*ends, 130, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def fbank(wave: Tensor) -> Tensor:
    """Kaldi's log mel filterbank: (B, L >= 400) in [-1, 1] -> (B, 1 + (L - 400) // 160, 128)."""
    rows = (wave * 32768).unfold(-1, 400, 160)  # (B, n, 400): 25 ms every 10 ms
    rows = rows - rows.mean(-1, keepdim=True)
    # Pre-emphasis y[i] = x[i] - 0.97 x[i - 1] lifts the high frequencies.
    rows = rows - 0.97 * torch.cat([rows[..., :1], rows[..., :-1]], -1)
    window = torch.hann_window(400, periodic=False, device=wave.device) ** 0.85  # "Povey"
    power = torch.fft.rfft(rows * window, n=512).abs() ** 2  # (B, n, 257)
    return (power @ _mel_triangles().to(wave.device)).clamp(min=1.1920929e-7).log()  # (B, n, 128)


class PositionalConv(nn.Module):
    """Convolutional position embedding: GELU of a grouped convolution along the tokens, (B, n, C).
    Weight normalisation: the weight is a direction and, for each of the kernel's taps, a norm."""

    def __init__(self, channels: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.randn(channels, channels // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True)
        padding = weight.shape[-1] // 2  # with an even kernel there is one output too many
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=padding, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


class GatedAttention(nn.Module):
    """Self-attention softmax(q k^T / sqrt(d) + gate * bias) v with a gated relative position bias:
    it depends on key - query; the gate, one number a head and query, says how much it counts."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(channels, channels) for _ in range(4))
        self.grep_linear = nn.Linear(channels // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, d)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        # g1 and g2 are each the sigmoid of a sum of four; gate = g1 (g2 a - 1) + 2.
        g1, g2 = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, -1)
        gate = g1 * (g2 * self.grep_a - 1) + 2  # (B, heads, n, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=gate * position_bias)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, n, C)


class BEATsLayer(nn.Module):
    """A transformer layer with "deep norm": x = norm(alpha x + f(x)), alpha = (2 layers)^(1/4)."""

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
    """The transformer of BEATs: (B, n, C) -> (B, n, C)."""

    def __init__(self, config: BEATsConfig):
        super().__init__()
        self.max_distance = config.max_distance
        width, heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.pos_conv = nn.ModuleList(
            [PositionalConv(width, config.conv_pos, config.conv_pos_groups)])
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BEATsLayer(config) for _ in range(config.encoder_layers))
        # All layers share one table of biases, which stands where the published file has it.
        self.layers[0].self_attn.relative_attention_bias = nn.Embedding(config.num_buckets, heads)

    def position_bias(self, n: int) -> Tensor:
        """The bias (heads, query, key), looked up by the distance of key and query."""
        table = self.layers[0].self_attn.relative_attention_bias.weight  # (buckets, heads)
        distance = torch.arange(1 - n, n, device=table.device)  # key - query: (2 n - 1,)
        # Half of the buckets are for keys after the query. Of each half, the first half stand for
        # one distance each, the others for ranges that grow logarithmically up to max_distance.
        half, exact = len(table) // 2, len(table) // 4
        far = torch.log(distance.abs().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (far * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), far)
        bucket += half * (distance > 0)
        # The distance d stands at place n - 1 + d of the list.
        place = torch.arange(n, device=table.device)
        place = n - 1 + place[None, :] - place[:, None]  # (query, key)
        return table[bucket[place]].permute(2, 0, 1)  # (heads, query, key)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv[0](x))
        position_bias = self.position_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, position_bias)
        return x


class BEATs(nn.Module):
    """A transformer over the patches of a spectrogram: audio (B, L) in [-1, 1], L >= 2800, to
    (B, 8 P, C). Of the P time patches, 160 ms each, and of 8 mel patches, token 8 p + m is that of
    time patch p and mel patch m."""

    def __init__(self, config: BEATsConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, 16, 16, bias=False)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.encoder = BEATsEncoder(config)

    def forward(self, wave: Tensor) -> Tensor:
        # BEATs' training data have this mean; the scale is twice their standard deviation.
        return self.encode((fbank(wave) - 15.41663) / (2 * 6.55582))

    def encode(self, spectrum: Tensor) -> Tensor:
        """Normalised filterbank (B, n, 128) -> (B, 8 P, C), P = n // 16; the rest is dropped."""
        patches = self.patch_embedding(spectrum[:, None])  # (B, C, P, 8)
        x = self.layer_norm(patches.flatten(2).transpose(1, 2))  # (B, 8 P, C)
        return self.encoder(self.post_extract_proj(x))


# ---- WavLM and wav2vec2, both with 50 features a second ----
def build_speech(config: AudioConfig) -> nn.Module:
    """The model of `transformers` of the configured kind and size."""
    # Imported here, because it takes seconds, and mistakes are to be told first.
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

    sizes = {**asdict(config.wavlm), "layerdrop": 0.0}
    if config.speech == "wavlm":
        return WavLMModel(WavLMConfig(**sizes))
    del sizes["num_buckets"], sizes["max_bucket_distance"]
    return Wav2Vec2Model(Wav2Vec2Config(**sizes))


def normalise(wave: Tensor) -> Tensor:
    """Gives audio zero mean and unit variance over the last axis, as wav2vec2 wants it."""
    variance = wave.var(-1, correction=min(1, wave.shape[-1] - 1), keepdim=True)
    return (wave - wave.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-7)


# ---- From features to video frames ----
def cut(wave: Tensor, start: int, stop: int) -> Tensor:
    """wave[start:stop] of audio (L,), with silence before its beginning and after its end."""
    inside = wave[max(start, 0) : stop]
    left = max(-start, 0)
    return F.pad(inside, (left, stop - start - left - len(inside)))


def speech_view(wave: Tensor) -> Tensor:
    """(B, 640 n + 2 MARGIN) -> (B, 640 n + 80): what the 2 n features of n video frames see. Each
    sees 400 samples, the 320 for which it stands and 40 more on each side."""
    return wave[:, MARGIN - 40 : 40 - MARGIN]


def stretched(features: Tensor, n: int) -> Tensor:
    """Released model: a list of features becomes 2 n audio tokens, (n, 2, C), by repeating some."""
    return features[torch.arange(2 * n) * len(features) // (2 * n)].unflatten(0, (-1, 2))


class AudioEncoder(nn.Module):
    """Both encoders, frozen: 16 kHz audio (L,) in [-1, 1], L >= 1, to audio tokens (N, 2, D_a)."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config, self.speech = config, build_speech(config)  # WavLM or wav2vec2
        self.events = BEATs(config.beats)  # trained to name sound events
        # The last recording encoded in one piece, and its tokens: each window wants some of them.
        self.whole: tuple[Tensor, Tensor] | None = None
        self.eval().requires_grad_(False)

    def forward(self, wave: Tensor) -> Tensor:
        return self.encode(wave, 0, frame_count(len(wave)))

    @torch.no_grad()
    def encode(self, wave: Tensor, start: int, stop: int) -> Tensor:
        """Audio tokens (stop - start, 2, D_a) of the video frames start to stop - 1, which may lie
        beyond the end of the recording (L,)."""
        given, wave = wave, wave.to(self.events.layer_norm.weight)
        config, frames = self.config, torch.arange(start, stop)
        released = config.mapping == "released"
        speech_wave = normalise(wave) if released and config.speech == "wav2vec2" else wave
        if released:
            # Ours has silence beyond the end; the released model repeats the last frame instead of
            # padding with silence, which would change the features of the whole recording.
            frames = frames.clamp(max=frame_count(len(wave)) - 1)
            if len(wave) <= config.max_whole_seconds * SAMPLE_RATE:
                if self.whole is None or self.whole[0] is not given:
                    self.whole = given, self._piece(speech_wave, wave, 0, len(wave))
                return self.whole[1][frames]
        # Chunks begin at multiples of `hop` and overlap. Of an overlap the first half is taken from
        # the earlier chunk, the second from the later: every frame has audio on both sides of it.
        hop, middle = config.chunk_frames - config.overlap_frames, config.overlap_frames // 2
        tokens, start, stop = [], int(frames[0]), int(frames[-1]) + 1
        while start < stop:
            first = max(start - middle, 0) // hop * hop  # of the chunk that `start` is taken from
            end = min(first + hop + middle, stop)
            a, b = first * FRAME_SAMPLES, (first + config.chunk_frames) * FRAME_SAMPLES
            tokens.append(self._piece(speech_wave, wave, a, b)[start - first : end - first])
            start = end
        return torch.cat(tokens)[frames - frames[0]]

    def _piece(self, speech_wave: Tensor, wave: Tensor, a: int, b: int) -> Tensor:
        """wave[a:b] encoded in one piece: audio tokens (n, 2, D_a) of n video frames."""
        if self.config.mapping == "released":
            speech = self.speech_released(cut(speech_wave, a, b))
            events = self.events_released(cut(wave, a, b))
        else:
            audio = cut(wave, a - MARGIN, b + MARGIN)[None]
            speech, events = self.speech_aligned(audio)[0], self.events_aligned(audio)[0]
        return torch.cat([each[:frame_count(b - a)] for each in (speech, events)], -1)

    def speech_aligned(self, wave: Tensor) -> Tensor:
        """(B, n, 2, C) speech features of n frames, of audio (B, 640 n + 240) with its margins."""
        wave = speech_view(wave)
        if self.config.speech == "wav2vec2":
            wave = normalise(wave)
        return self.speech(wave).last_hidden_state.unflatten(1, (-1, 2))

    def events_aligned(self, wave: Tensor) -> Tensor:
        """(B, n, 2, C) BEATs features of the same; n is a multiple of 4."""
        # A time patch lasts 4 frames: all 8 of their audio tokens get the mean of its mel patches.
        patches = self.events(wave).unflatten(1, (-1, 8)).mean(2)  # (B, n / 4, C)
        return patches.repeat_interleave(8, 1).unflatten(1, (-1, 2))

    def speech_released(self, wave: Tensor) -> Tensor:
        """(n, 2, C) speech features of audio (L,), which for wav2vec2 is already normalised."""
        n = frame_count(len(wave))
        n += n % 2 if self.config.speech == "wavlm" else 0
        features = self.speech(cut(wave, 0, n * FRAME_SAMPLES)[None]).last_hidden_state[0]
        # One of 2 n features is missing. WavLM's are stretched: features lag one token behind, the
        # first is repeated. wav2vec2's are in step, and a zero is put behind the last.
        if self.config.speech == "wavlm":
            return stretched(features, n)
        return F.pad(features, (0, 0, 0, 1)).unflatten(0, (-1, 2))

    def events_released(self, wave: Tensor) -> Tensor:
        """(n, 2, C) BEATs features of audio (L,), n even."""
        n = frame_count(len(wave))
        n = max(n + n % 2, 6)  # shorter audio has no whole time patch
        features = self.events(cut(wave, 0, n * FRAME_SAMPLES)[None])[0]  # (8 P, C)
        # The list is stretched to two a frame as if it ran along time: the 8 mel patches of one
        # instant go to 4 successive frames. The released weights were trained that way.
        return stretched(features, n)
