"""The two models of KeyFace: what each is told, and how it denoises (paper: sections 3.2, 3.3).

"""

from collections.abc import Callable
from dataclasses import dataclass, field
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
    interpolation: bool = False  # between two known frames, or keyframes from the identity alone
    frames: int = 14  # T
    spacing: int = 13  # video frames from one element of a window to the next
    audio_dim: int = 1536  # D: WavLM + BEATs
    latent_shape: tuple[int, ...] = (4, 64, 64)  # (C, h, w)
    condition_scale: float = 1 / 0.18215  # released: condition latents lack the VAE's scale factor
    blend: bool = False  # ours: a linear blend of the end latents under the learned mask embedding
    p_mean: float = 1.0  # ln sigma ~ N(p_mean, p_std^2) in training
    p_std: float = 1.2
    sigma_max: float = diffusion.AYS[0]
    lambda_lower: float = 3.0  # weight of the lower half of the latent rows: the mouth
    pixel_weight: float = 1.0  # ours is less: times lambda(sigma) the VAE's own error is unbounded
    drop_identity: float = 0.1
    drop_audio: float = 0.2


@dataclass
class Config:
    """Everything of a weights folder's config.json. The defaults are the released model's."""

    keyframe: StageConfig = field(default_factory=StageConfig)
    interp: StageConfig = field(default_factory=lambda: StageConfig(
        unet=UNetConfig(in_channels=9, emotion_dim=0), interpolation=True, spacing=1,
        lambda_lower=2.0, pixel_weight=0.0))
    vae: VAEConfig = field(default_factory=VAEConfig)
    audio: AudioConfig = field(default_factory=AudioConfig.full)
    # Of interpolation, another kind of speech encoder beside the same BEATs; None: hears the same.
    interp_audio: AudioConfig | None = field(default_factory=lambda: AudioConfig.full("wav2vec2"))
    size: int = 512  # side of the image in pixels
    dummy_first: bool = True  # released: a window's first frame repeats the identity, thrown away
    average_shared: bool = False  # the paper: copies of a shared frame agree at each step
    steps: int = 10
    id_guidance: float = 2.0
    audio_guidance: float = 5.0
    autoguidance: float = 2.0

    def check(self) -> "Config":
        """The same; raises ValueError where fields contradict each other."""
        a, b, v, w = self.keyframe, self.interp, self.vae, self.interp_audio or self.audio
        latent = (v.z_channels, *[self.size / 2 ** (len(v.ch_mult) - 1)] * 2)
        fits = {"latent_shape": a.latent_shape == b.latent_shape == latent,
                "audio_dim": a.audio_dim == b.audio_dim == self.audio.width == w.width,
                "frames": b.frames == a.spacing + 1 and a.frames > 1,  # from keyframe to keyframe
                "num_head_channels": not any(s.unet.model_channels % s.unet.num_head_channels
                                             for s in (a, b)),
                "latent_mean": {len(m) for m in (v.latent_mean, v.latent_std) if m} <= {latent[0]}}
        for name, fit in fits.items():
            if not fit:
                raise ValueError(f"{name} does not fit the other fields")
        return self

    @staticmethod
    def tiny() -> "Config":
        """64 x 64 pixels, 2.5 million parameters a stage: trained in hours on two CPU cores."""
        common = {"audio_dim": 128, "latent_shape": (4, 16, 16), "condition_scale": 1.0,
                  "p_mean": 0.3, "p_std": 1.3, "sigma_max": 80.0}
        return Config(
            # Drawn eyes are as large as mouths, and harder; frames between have them from the ends.
            keyframe=StageConfig(unet=UNetConfig.tiny(), lambda_lower=1.5, pixel_weight=0.1,
                                 **common),
            interp=StageConfig(unet=UNetConfig.tiny(in_channels=9, emotion_dim=0), spacing=1,
                               interpolation=True, lambda_lower=4.0, pixel_weight=0.0, blend=True,
                               **common),
            vae=VAEConfig.tiny(), audio=AudioConfig.tiny(), interp_audio=None, size=64,
            dummy_first=False, average_shared=True, id_guidance=1.5, audio_guidance=2.0,
            autoguidance=1.5)


# ---- the two models ---------------------------------------------------------------------------


class Conditions(NamedTuple):
    """What a model is told about B clips."""

    concat: Tensor  # identity latents (B, C, h, w), or both end latents (B, 2C, h, w)
    context: Tensor  # audio tokens (B, T, context width)
    emotion: Tensor | None  # (B*T, emotion width), keyframes only

    @staticmethod
    def stack(parts: list["Conditions"]) -> "Conditions":
        return Conditions(*(None if c[0] is None else torch.cat(c) for c in zip(*parts)))

    def part(self, s: slice) -> "Conditions":
        """The same of some of the clips; without emotion."""
        return Conditions(self.concat[s], self.context[s], None)

    def keep(self, identity: Tensor, audio: Tensor) -> "Conditions":
        """The same with the identity and the audio of clips dropped where these (B,) are 0, not 1.
        Dropped means zero after the embedder: zero tokens, not the bias of the linear layer."""
        return self._replace(concat=self.concat * identity[:, None, None, None],
                             context=self.context * audio[:, None, None])


class Stage(nn.Module):
    """A diffusion model of T frames: keyframes, or (config.interpolation) those between two."""

    def __init__(self, config: StageConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.audio_proj = nn.Linear(config.audio_dim, config.unet.context_dim)
        if config.interpolation:
            self.learned_mask = nn.Parameter(torch.zeros(config.latent_shape))

    def conditions(self, latents: Tensor, audio: Tensor, mood: Tensor | None = None) -> Conditions:
        """Embeds what is known. latents: identity (B, C, h, w), or start and end (B, 2, C, h, w);
        audio (B, T, 2, D); mood, for keyframes, valence and arousal (B, T, 2) in [-1, 1]."""
        concat = latents.flatten(1, -3) * self.config.condition_scale  # (B, C or 2C, h, w)
        context = self.audio_proj(audio.mean(dim=2).to(self.audio_proj.weight))  # (B, T, width)
        emotion = None
        if self.config.unet.emotion_dim:
            emotion = sinusoid(mood, self.config.unet.emotion_dim // 2)  # (B, T, 2, half the width)
            emotion = emotion.flatten(2).flatten(0, 1).to(context)  # (B*T, emotion width)
        return Conditions(concat, context, emotion)

    def attach(self, x: Tensor, concat: Tensor) -> Tensor:
        """The network's input: noisy latents (B, T, C, h, w), already times c_in, with their
        condition channels, which are not: (B*T, 8 or 9, h, w)."""
        b, t, c, h, w = x.shape
        if not self.config.interpolation:
            return torch.cat([x, concat[:, None].expand(b, t, c, h, w)], dim=2).flatten(0, 1)
        start, end = concat[:, None, :c], concat[:, None, c:]
        middle = self.learned_mask.expand(b, t - 2, c, h, w)
        if self.config.blend:
            k = torch.arange(1, t - 1, device=x.device).view(1, -1, 1, 1, 1) / (t - 1)
            middle = middle + torch.lerp(start, end, k.to(x.dtype))
        known = torch.zeros(b, t, 1, h, w, dtype=x.dtype, device=x.device)
        known[:, [0, -1]] = 1
        return torch.cat([x, torch.cat([start, middle, end], dim=1), known], dim=2).flatten(0, 1)

    def denoise(self, x: Tensor, sigma: Tensor, conditions: Conditions,
                images: bool = False) -> Tensor:
        """D(x; sigma, conditions). x (B, T, C, h, w), sigma (B,). With `images` every frame stands
        alone (T = 1) and the temporal half of the network is left out. The network computes in its
        weights' precision, all around it in float32."""
        b, t = x.shape[:2]
        c_skip, c_out, c_in, c_noise = (c.view(b, 1, 1, 1, 1) for c in diffusion.scalings(sigma))
        out = self.unet(self.attach(c_in * x, conditions.concat).to(conditions.context),
                        c_noise.flatten().repeat_interleave(t),
                        conditions.context, conditions.emotion, None if images else t)
        return c_skip * x + c_out * out.unflatten(0, (b, t))

    def loss(self, vae: VAE, target: Tensor, latents: Tensor, audio: Tensor, mood: Tensor | None,
             original: Tensor, frame: int, images: bool = False,
             pixel_rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The whole training objective (paper: losses).

        target (B, T, C, h, w) clean latents; the conditions as in `conditions`; original
        (B, 3, H, W) the true pixels of frame number `frame`, one for the batch, of the pixel loss,
        taken on the clips `pixel_rows`. Returns latent and pixel loss.
        """
        c, b = self.config, len(target)
        sigma = diffusion.draw_sigma(torch.randn(b, device=target.device), c.p_mean, c.p_std)
        keep_identity = (torch.rand(b, device=target.device) >= c.drop_identity).to(target.dtype)
        keep_audio = (torch.rand(b, device=target.device) >= c.drop_audio).to(target.dtype)
        known = self.conditions(latents, audio, mood).keep(keep_identity, keep_audio)
        noisy = target + sigma.view(b, 1, 1, 1, 1) * torch.randn_like(target)
        denoised = self.denoise(noisy, sigma, known, images)
        latent = diffusion.latent_loss(denoised, target, sigma, c.lambda_lower).mean()
        if not c.pixel_weight:
            return latent, torch.zeros_like(latent)
        original, sigma = original[pixel_rows], sigma[pixel_rows]
        decoded = vae.to_images(denoised[pixel_rows, frame])
        distance = (diffusion.loss_weight(sigma) * perceptual(vae, decoded, original)).mean()
        return latent, c.pixel_weight * (diffusion.pixel_loss(decoded, original, sigma) + distance)


def guidance_parts(known: Conditions, nothing: Conditions | None = None) -> list[Conditions]:
    """What the evaluations of keyframe guidance are told: neither, identity, both."""
    zero = known.context.new_zeros(1)
    nothing = nothing or known.keep(zero, zero)
    return [nothing, known._replace(context=nothing.context), known]


def guided_keyframes(denoise: Callable, known: Conditions, id_guidance: float,
                     audio_guidance: float, nothing: Conditions | None = None,
                     batched: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x, sigma) -> D with two-condition guidance: three evaluations, `batched` or one
    after the other."""
    parts = guidance_parts(known, nothing)
    parts = [Conditions.stack(parts)] if batched else parts

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.repeat(3 // len(parts), 1, 1, 1, 1)
        out = torch.cat([denoise(x, sigma.expand(len(x)), part) for part in parts])
        return diffusion.guide_keyframes(out, id_guidance, audio_guidance)

    return guided


def guided_segments(denoise: Callable, known: Conditions, weight: float = 1.0,
                    bad: Callable | None = None, bad_known: Conditions | None = None,
                    batch: int = 4) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser (x, sigma) -> D of segments with autoguidance, or plain where there is no bad
    model; `batch` segments at a time."""

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        parts = []
        for i in range(0, len(x), batch):
            s = slice(i, i + batch)
            levels = sigma.expand(len(x[s]))
            part = denoise(x[s], levels, known.part(s))
            if bad is not None:
                part = diffusion.autoguide(bad(x[s], levels, bad_known.part(s)), part, weight)
            parts.append(part)
        return torch.cat(parts)

    return guided
