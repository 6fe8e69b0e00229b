"""The two models of KeyFace, which differ only in what they are told (paper: method).

`Stage` is one diffusion model of T frames. As the *keyframe* model it sees one identity frame, the
audio and the emotion; as the *interpolation* model it sees the first and the last of its frames and
the audio. Interpolation ignores the identity frame: its two keyframes show the person.

Latents are (B, T, C, h, w), audio tokens (B, T, 2, D_a), emotion is valence and arousal (B, T, 2)
in [-1, 1]. D is the denoiser and F the network inside it (diffusion.py and unet.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

import diffusion
from audio import AudioConfig
from unet import UNet, UNetConfig, sinusoid
from vae import VAE, VAEConfig, perceptual

# ---- configuration ----------------------------------------------------------------------------


@dataclass
class StageConfig:
    """One of the two diffusion models. The defaults are the released keyframe model's."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    interpolation: bool = False  # True: frames between two known ones; False: keyframes
    frames: int = 14  # T
    spacing: int = 13  # S; 1 for interpolation, whose T is the keyframes' S + 1
    audio_dim: int = 1536  # D_a: WavLM + BEATs
    latent_shape: tuple[int, ...] = (4, 64, 64)  # (C, h, w)
    # Scaled latents times this are z_id, or z_s and z_e. The released models see those without the
    # VAE's scale factor, 5.5 times as large as clean latents; the tiny ones see both alike (1.0).
    condition_scale: float = 1 / 0.18215
    # Ours: a linear blend of the two ends is added to z_m, the learned mask embedding, in the
    # condition channels of the unknown frames. The paper has z_m alone.
    blend: bool = False
    p_mean: float = 1.0  # ln sigma ~ N(p_mean, p_std^2) in training
    p_std: float = 1.2
    sigma_max: float = diffusion.AYS[0]
    lambda_lower: float = 3.0  # weight of the lower half of the latent rows: the mouth
    lambda_eyes: float = 1.0  # ours: of the quarter above it
    # Of keyframes alone. Tiny uses 0.1: lambda(sigma) amplifies the VAE's own error as sigma goes
    # to 0.
    pixel_weight: float = 1.0
    pixel_share: float = 1.0  # share of a batch's windows that get the pixel loss; < 1 is ours
    drop_identity: float = 0.1
    drop_audio: float = 0.2
    without: str = ""  # an ablation: the speech ("wavlm") or BEATs features ("beats") are zeros
    # The paper's recipe: training goes on from SVD's network, whose temporal layers are frozen.
    finetune: bool = False
    checkpoint_activations: bool = False  # recompute them in the backward pass: less memory

    @property
    def chained(self) -> bool:
        """Whether this is the autoregressive baseline of toy/claims, and not KeyFace: windows of
        consecutive frames, each given the last frame before it as its identity."""
        return self.spacing == 1 and not self.interpolation


@dataclass
class Config:
    """The contents of a weights folder's config.json. The defaults are the released model's."""

    keyframe: StageConfig = field(default_factory=StageConfig)
    interp: StageConfig = field(default_factory=lambda: StageConfig(
        unet=UNetConfig(in_channels=9, emotion_dim=0), interpolation=True, spacing=1,
        lambda_lower=2.0, pixel_weight=0.0))
    vae: VAEConfig = field(default_factory=VAEConfig)
    audio: AudioConfig = field(default_factory=AudioConfig.full)
    # Audio encoder of the interpolation stage; None: the keyframes'.
    interp_audio: AudioConfig | None = field(default_factory=lambda: AudioConfig.full("wav2vec2"))
    size: int = 512  # side of the image in pixels
    dummy_first: bool = True  # released: a window's first element is thrown away (`keyface.Plan`)
    average_shared: bool = False  # True, as in the paper: shared frames are averaged at each step
    steps: int = 10
    id_guidance: float = 2.0
    audio_guidance: float = 5.0
    autoguidance: float = 2.0

    def check(self) -> "Config":
        """Returns itself; raises ValueError where fields contradict each other."""
        a, b, v, w = self.keyframe, self.interp, self.vae, self.interp_audio or self.audio
        latent = (c := v.z_channels, *[self.size / v.patch / 2 ** (len(v.ch_mult) - 1)] * 2)
        others = {"in_channels": b.unet.in_channels, "emotion_dim": b.unet.emotion_dim}
        fits = {"latent_shape": a.latent_shape == b.latent_shape == latent,
                "channel_mult": latent[1] % 2 ** (len(a.unet.channel_mult) - 1) == 0,
                "in_channels": (a.unet.in_channels, b.unet.in_channels) == (2 * c, 2 * c + 1),
                "out_channels": a.unet.out_channels == b.unet.out_channels == c,
                "emotion_dim": a.unet.emotion_dim % 4 == b.unet.emotion_dim == 0,
                "audio_dim": a.audio_dim == b.audio_dim == self.audio.width == w.width,
                "without": {a.without, b.without} <= {"", "wavlm", "beats"} and (
                    a.without == b.without == "" or 2 * w.beats.encoder_embed_dim == w.width),
                "beats": w.beats == self.audio.beats,  # one BEATs serves both stages
                "frames": b.frames == a.spacing + 1 and a.frames > 1,  # from keyframe to keyframe
                "num_head_channels": a.unet.model_channels % a.unet.num_head_channels == 0,
                "latent_mean": {len(m) for m in (v.latent_mean, v.latent_std) if m} <= {latent[0]},
                "unet": replace(a.unet, **others) == b.unet}  # interp begins as a copy of keyframe
        for name, fit in fits.items():
            if not fit:
                raise ValueError(f"{name} does not fit the other fields")
        return self

    def frozen(self) -> list[str]:
        """Names of the parts that training leaves as they are: autoencoder and audio encoders."""
        return ["vae", "wavlm", "beats"] + ["wav2vec2"] * (self.interp_audio is not None)

    @staticmethod
    def tiny(size: int = 64) -> "Config":
        """Of 64 or 128 pixels, 2.5 million parameters a stage: trained in hours on two cores."""
        vae = VAEConfig.tiny(size)
        c = vae.z_channels
        common = {"audio_dim": 128, "latent_shape": (c, 16, 16), "condition_scale": 1.0,
                  "p_mean": 0.3, "p_std": 1.3, "sigma_max": 80.0}
        return Config(
            # Drawn eyes are as large as mouths and harder to learn, for an iris's colour changes
            # latents little. Interpolation copies it from its ends, but makes blinks itself.
            keyframe=StageConfig(unet=UNetConfig.tiny(in_channels=2 * c, out_channels=c),
                                 lambda_lower=1.5, lambda_eyes=4.0, pixel_weight=0.1,
                                 pixel_share=0.5, **common),
            interp=StageConfig(unet=UNetConfig.tiny(in_channels=2 * c + 1, out_channels=c,
                                                    emotion_dim=0),
                               spacing=1, interpolation=True, lambda_lower=4.0, lambda_eyes=4.0,
                               pixel_weight=0.0, blend=True, **common),
            vae=vae, audio=AudioConfig.tiny(), interp_audio=None, size=size,
            dummy_first=False, average_shared=True, steps=4, id_guidance=1.25,
            audio_guidance=2.0, autoguidance=2.0)


# ---- the two models ---------------------------------------------------------------------------


class Conditions(NamedTuple):
    """What a model is told about B windows (or segments), embedded."""

    concat: Tensor  # z_id (B, C, h, w), or z_s and z_e (B, 2C, h, w): channels beside noisy ones
    context: Tensor  # audio embeddings (B, T, D_c): a frame attends to all T and is told its own
    emotion: Tensor | None  # (B*T, emotion width), keyframes only: each frame is told its own

    @staticmethod
    def stack(parts: list["Conditions"]) -> "Conditions":
        """Several sets of conditions as one batch, one after the other."""
        return Conditions(*(None if c[0] is None else torch.cat(c) for c in zip(*parts)))

    def part(self, s: slice) -> "Conditions":
        """The conditions of some of the segments, which have no emotion."""
        return self._replace(concat=self.concat[s], context=self.context[s])

    def keep(self, identity: Tensor, audio: Tensor) -> "Conditions":
        """Drops the identity (or both ends) and the audio where these (B,) are 0, and keeps them
        where they are 1. The audio is zeroed after its embedding, so that the embedding's bias
        does not remain. Emotion is never dropped."""
        return self._replace(concat=self.concat * identity[:, None, None, None],
                             context=self.context * audio[:, None, None])


class Draws(NamedTuple):
    """Noise levels, dropouts and noise of one training step on B windows that data.py chose."""

    sigma: Tensor  # (B,) noise levels
    keep_identity: Tensor  # (B,) 1, or 0 where the identity (or both ends) is dropped
    keep_audio: Tensor  # (B,) the same for the audio
    noise: Tensor  # (B, T, C, h, w) unit normal

    def rows(self, rows: slice) -> "Draws":
        """Those of some of the windows."""
        return Draws(*(value[rows] for value in self))

    def to(self, device: torch.device) -> "Draws":
        """On `device`, in torch's default dtype (float32)."""
        return Draws(*(value.to(device, torch.get_default_dtype()) for value in self))


class Stage(nn.Module):
    """A diffusion model of T frames: keyframes, or (`config.interpolation`) the frames between
    two of them. Calling it computes the training loss; sampling calls `denoise`."""

    distance = staticmethod(perceptual)  # (vae, images, images) -> (N,), in place of LPIPS

    def __init__(self, config: StageConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.audio_proj = nn.Linear(config.audio_dim, config.unet.context_dim)
        if config.interpolation:
            self.learned_mask = nn.Parameter(torch.zeros(config.latent_shape))  # z_m

    def conditions(self, known_latents: Tensor, audio_tokens: Tensor,
                   emotion: Tensor | None = None) -> Conditions:
        """Embeds what is known (paper: conditioning). known_latents: scaled ones of the identity
        (B, C, h, w), or of start and end (B, 2, C, h, w); times `condition_scale` they become z_id,
        or z_s and z_e. audio_tokens (B, T, 2, D_a); emotion, for keyframes, valence and arousal
        (B, T, 2) in [-1, 1]."""
        concat = known_latents.flatten(1, -3) * self.config.condition_scale  # (B, C or 2C, h, w)
        # A video frame lasts two audio tokens; their mean goes through one trained linear layer.
        tokens = audio_tokens.mean(dim=2)  # (B, T, D_a)
        if self.config.without:  # zeros in place of its half of D_a
            tokens.chunk(2, dim=-1)[self.config.without == "beats"].zero_()
        context = self.audio_proj(tokens.to(self.audio_proj.weight))  # (B, T, D_c)
        vector = None
        if self.config.unet.emotion_dim:
            # Two numbers a frame are too few to steer a network: each becomes a row of sines.
            vector = sinusoid(emotion, self.config.unet.emotion_dim // 2)  # (B, T, 2, width / 2)
            vector = vector.flatten(2).flatten(0, 1).to(context)  # (B*T, width)
        return Conditions(concat, context, vector)

    def attach(self, x: Tensor, concat: Tensor) -> Tensor:
        """The network's input (B*T, 2C or 2C + 1, h, w): the noisy latents x (B, T, C, h, w), which
        c_in has scaled already, and their condition channels, which c_in does not scale."""
        b, t, c, h, w = x.shape
        # Keyframes, C + C channels (4 + 4): every frame gets the identity latent z_id.
        if not self.config.interpolation:
            return torch.cat([x, concat[:, None].expand(b, t, c, h, w)], dim=2).flatten(0, 1)
        # Interpolation, C + C + 1 channels: the sequence [z_s, z_m, ..., z_m, z_e], and the mask M,
        # which is 1 at the two known frames.
        start, end = concat[:, None, :c], concat[:, None, c:]  # (B, 1, C, h, w)
        middle = self.learned_mask.expand(b, t - 2, c, h, w)
        if self.config.blend:  # ours, not the paper's: it learns several times faster
            k = torch.arange(1, t - 1, device=x.device).view(1, -1, 1, 1, 1) / (t - 1)
            middle = middle + torch.lerp(start, end, k.to(x.dtype))
        sequence = torch.cat([start, middle, end], dim=1)  # (B, T, C, h, w)
        mask = torch.zeros(b, t, 1, h, w, dtype=x.dtype, device=x.device)
        mask[:, [0, -1]] = 1
        return torch.cat([x, sequence, mask], dim=2).flatten(0, 1)

    def denoise(self, x: Tensor, sigma: Tensor, known: Conditions,
                spatial_only: bool = False) -> Tensor:
        """D(x; sigma, known) = c_skip x + c_out F(c_in x, c_noise, known). x (B, T, C, h, w), sigma
        (B,). With `spatial_only` every frame stands alone (T = 1) and the temporal half of the
        network is left out. The network computes in its weights' precision (or as --bf16 says), all
        around it in float32."""
        b, t = x.shape[:2]
        c_skip, c_out, c_in, c_noise = (c.view(b, 1, 1, 1, 1) for c in diffusion.scalings(sigma))
        out = self.unet(self.attach(c_in * x, known.concat).to(known.context),
                        c_noise.flatten().repeat_interleave(t),
                        known.context, known.emotion, None if spatial_only else t)
        return c_skip * x + c_out * out.unflatten(0, (b, t))

    def draw(self, shape: tuple[int, ...]) -> Draws:
        """Draws what is random in a training step on latents of `shape` (B, T, C, h, w): on the
        CPU, so that a seed means the same on every device."""
        c, b = self.config, shape[0]
        return Draws(diffusion.training_sigma(torch.randn(b), c.p_mean, c.p_std),
                     (torch.rand(b) >= c.drop_identity).float(),
                     (torch.rand(b) >= c.drop_audio).float(),
                     torch.randn(shape))

    def forward(self, vae: VAE, x0: Tensor, known_latents: Tensor, audio_tokens: Tensor,
                emotion: Tensor | None, draws: Draws, pixels: Tensor | None = None,
                frame: int = 0, spatial_only: bool = False) -> tuple[Tensor, Tensor]:
        """The training objective (paper: losses): latent loss and weighted pixel loss, two scalars.

        x0 (B, T, C, h, w) clean latents; known_latents, audio_tokens, emotion as in `conditions`.
        For keyframes, pixels (P, 3, H, W): the true ones of frame number `frame` of P windows. The
        pixel loss looks at one frame only, because decoding all 14 would not fit into memory.
        """
        c, sigma = self.config, draws.sigma
        known = self.conditions(known_latents, audio_tokens, emotion)
        known = known.keep(draws.keep_identity, draws.keep_audio)
        noisy = x0 + sigma.view(-1, 1, 1, 1, 1) * draws.noise
        denoised = self.denoise(noisy, sigma, known, spatial_only)
        latent = diffusion.latent_loss(denoised, x0, sigma, c.lambda_lower, c.lambda_eyes).mean()
        if pixels is None or not c.pixel_weight:
            return latent, torch.zeros_like(latent)
        # L2 + LPIPS on the decoded frame. (From 32 x 32 latents on, if it is installed, LPIPS
        # is `distance`, see tools/scaling.py; else features of our own autoencoder's encoder.)
        sigma = sigma[:len(pixels)]
        decoded = vae.to_images(denoised[:len(pixels), frame])  # (P, 3, H, W)
        distance = (diffusion.loss_weight(sigma) * self.distance(vae, decoded, pixels)).mean()
        return latent, c.pixel_weight * (diffusion.pixel_loss(decoded, pixels, sigma) + distance)


# ---- guidance (paper: guidance) -----------------------------------------------------------------


def guidance_parts(known: Conditions, nothing: Conditions | None = None) -> list[Conditions]:
    """What the three evaluations of keyframe guidance are told: neither, the identity, both. All
    three are told the emotion, so guidance has no term for it. `nothing` gives the
    conditions of "neither"; by default they are those of `known`, dropped."""
    zero = known.context.new_zeros(1)
    nothing = nothing or known.keep(zero, zero)
    return [nothing, known._replace(context=nothing.context), known]


def guided_keyframes(denoise: Callable, known: Conditions, id_guidance: float,
                     audio_guidance: float, batched: bool = True
                     ) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x, sigma) -> D with guidance by identity and audio: up to three evaluations, as
    one batch, or (not `batched`) one after the other, in less memory."""
    # What has no weight is not computed: with both guidance weights 1 only the third is.
    weights = diffusion.keyframe_weights(id_guidance, audio_guidance)
    parts = [part for part, weight in zip(guidance_parts(known), weights, strict=True) if weight]
    weights, k = [weight for weight in weights if weight], len(parts)
    stacked = Conditions.stack(parts)

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if batched:
            out = denoise(x.repeat(k, 1, 1, 1, 1), sigma.expand(k * len(x)), stacked)
        else:
            out = torch.cat([denoise(x, sigma.expand(len(x)), part) for part in parts])
        return diffusion.guide_keyframes(out, weights)

    return guided


def guided_segments(denoise: Callable, known: Conditions, weight: float = 1.0,
                    bad: Callable | None = None, bad_known: Conditions | None = None,
                    batch: int = 4) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x, sigma) -> D of segments with autoguidance by the `bad` model, an early state
    of the same network that is told the same; without one, or with weight 1, plain. `batch`
    segments at a time."""

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        parts = []
        for i in range(0, len(x), batch):
            s = slice(i, i + batch)
            levels = sigma.expand(len(x[s]))
            part = denoise(x[s], levels, known.part(s))
            if bad is not None and weight != 1:
                part = diffusion.autoguide(bad(x[s], levels, bad_known.part(s)), part, weight)
            parts.append(part)
        return torch.cat(parts)

    return guided
