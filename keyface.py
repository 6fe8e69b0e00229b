"""KeyFace (CVPR 2025, arXiv 2503.01715): one image and one sound to a talking face of any length.

From top to bottom: the configuration, the two models (keyframe generation, interpolation),
their guided denoisers, the plan of a long video and its generator. The diffusion itself is
in diffusion.py.

Alphabet: B clips, T = 14 frames a window, C = 4 latent channels, h x w latent pixels, N video
frames, S = 13 the spacing of keyframes, D audio features. Latents are (B, T, C, h, w), images RGB
in [-1, 1], sound 16 kHz mono.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import diffusion
from audio import AudioConfig, AudioEncoder
from checkpoint import check_header, fitting, load_config, load_part
from emotion import emotion_curve
from media import InputError, frame_count, read_audio, read_image
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


# ---- the plan of a long video (paper: long sequences) --------------------------------------


@dataclass
class Plan:
    """Which of N video frames is made where: windows and segments on a fixed grid from frame 0."""

    total: int  # N
    spacing: int = 13
    frames: int = 14
    dummy_first: bool = False

    @property
    def keyframes(self) -> int:
        """Keyframes 0, 13, 26, ... up to the first index >= N - 1."""
        return -(-(self.total - 1) // self.spacing) + 1

    @property
    def per_window(self) -> int:
        """Usable keyframes of a window."""
        return self.frames - self.dummy_first

    @property
    def windows(self) -> int:
        """Windows of keyframes."""
        return -(-self.keyframes // self.per_window)

    @property
    def groups(self) -> int:
        """Groups of segments: those of one window, the last to the next window's first keyframe."""
        return max(1, -(-(self.keyframes - 1) // self.per_window))

    def window(self, index: int) -> list[int]:
        """Video frames of the T elements of window `index`; a dummy element sounds like frame 0."""
        first = index * self.per_window
        return [0] * self.dummy_first + [(first + i) * self.spacing for i in range(self.per_window)]

    def segments(self, group: int) -> list[tuple[int, int]]:
        """First and last video frame of each segment of a group."""
        start = group * self.per_window
        stop = min(start + self.per_window, self.keyframes - 1)
        return [(k * self.spacing, (k + 1) * self.spacing) for k in range(start, stop)]

    @property
    def span(self) -> int:
        """Video frames from the beginning of one group to that of the next."""
        return self.per_window * self.spacing

    def written(self, group: int) -> range:
        """Video frames that a group hands out: its first is the last of the group before."""
        start = group * self.span
        return range(start + (group > 0), min(start + self.span + 1, self.total))

    @property
    def padded(self) -> int:
        """Frames of sound and emotion that the plan looks at, some of them past the end."""
        return self.window(self.windows - 1)[-1] + 1


# ---- the generator ----------------------------------------------------------------------------


class KeyFace:
    """Both stages, autoencoder and hearing, ready to animate.

        model = KeyFace.load("weights/tiny")
        for frame in model.animate("face.png", "talk.wav", "0:neutral 2.5:happy"):
            ...  # uint8 (H, W, 3), 25 a second
    """

    def __init__(self, config: Config, device: str = "cpu", low_memory: bool = False):
        self.config, self.size = config, config.size  # side of the generated image in pixels
        self.device, self.low_memory = torch.device(device), low_memory
        self.keyframe = Stage(config.keyframe)
        self.interp = Stage(config.interp)
        self.interp_bad: Stage | None = Stage(config.interp)
        self.vae = VAE(config.vae)
        self.audio = self.interp_audio = AudioEncoder(config.audio)
        if config.interp_audio:
            self.interp_audio = AudioEncoder(config.interp_audio)
            self.interp_audio.events = self.audio.events

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", low_memory: bool = False) -> "KeyFace":
        """Reads a weights folder: config.json and one safetensors file a part; interp_bad may be
        absent. "released", or a folder without config.json: see released.py. `low_memory`: parts
        are on the device only while they work, and work on one clip or image at a time. Raises
        InputError for a missing, damaged or mismatched file."""
        given = [p.name for p in Path(folder).glob("*")] if os.path.isdir(folder) else []
        if str(folder) == "released" or given and "config.json" not in given:
            import released  # which imports this file

            return released.load(folder, device, low_memory)
        with torch.device("meta"), fitting(Path(folder) / "config.json"):
            # On no device yet: the weights bring their memory along.
            model = KeyFace(load_config(Config, folder).check(), device, low_memory)
        if not (Path(folder) / "interp_bad.safetensors").exists():
            model.interp_bad = None
        for name, module in model.parts().items():
            load_part(Path(folder) / f"{name}.safetensors", module, model.device, model.parts())
            if name == "vae":
                check_header(Path(folder) / "vae.safetensors", model.config.vae)
            module.eval().requires_grad_(False).to("cpu" if low_memory else device)
        return model

    def parts(self) -> dict[str, nn.Module]:
        """The modules of a weights folder, by file name."""
        parts = {"keyframe": self.keyframe, "interp": self.interp, "interp_bad": self.interp_bad,
                 "vae": self.vae, "wavlm": self.audio.speech, "beats": self.audio.events,
                 "wav2vec2": self.interp_audio.speech if self.config.interp_audio else None}
        return {name: module for name, module in parts.items() if module is not None}

    def bring(self, *names: str) -> None:
        """With `low_memory`, only these parts are on the device then, the others on the CPU."""
        if self.low_memory:
            parts = self.parts()
            for name in sorted(parts, key=names.__contains__):  # first the others leave
                parts[name].to(self.device if name in names else "cpu")

    @torch.no_grad()
    def animate(self, image: str | Path | np.ndarray, audio: str | Path | np.ndarray,
                emotion: str | Path = "neutral", *, steps: int | None = None,
                id_guidance: float | None = None, audio_guidance: float | None = None,
                autoguidance: float | None = None, seed: int = 0, start: int = 0,
                progress: Callable[[str, int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Yields ceil(25 x seconds) frames, uint8 (H, W, 3), each group as soon as it is done, in
        constant memory; or those from number `start` on, without making the groups before.

        image: a path, or uint8 (H, W, 3) of any size; audio: a path, or float (L,) at 16 kHz
        in [-1, 1]; emotion as in `emotion_curve`; guidance weights and steps default to the
        config's. progress(stage, done, total) is called after every network step. Raises
        InputError for what cannot be used.
        """
        c = self.config
        steps = c.steps if steps is None else steps
        id_guidance = c.id_guidance if id_guidance is None else id_guidance
        audio_guidance = c.audio_guidance if audio_guidance is None else audio_guidance
        autoguidance = c.autoguidance if autoguidance is None else autoguidance
        if steps < 1 or seed < 0:
            raise InputError(f"steps: {steps}, seed: {seed}; give at least 1, and at least 0")
        if not all(map(math.isfinite, (id_guidance, audio_guidance, autoguidance))):
            raise InputError("id_guidance, audio_guidance and autoguidance must be finite numbers")
        image, audio = read_image(image, c.size), read_audio(audio)

        plan = Plan(frame_count(len(audio)), c.keyframe.spacing, c.keyframe.frames, c.dummy_first)
        if not 0 <= start < plan.total:
            raise InputError(f"start: {start} is no frame of a film of {plan.total}")
        curve = torch.from_numpy(emotion_curve(emotion, plan.padded)).to(self.device)  # (frames, 2)
        wave = torch.from_numpy(audio).to(self.device)
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None] / 127.5 - 1
        self.bring("vae")
        identity = self.vae.to_latents(pixels)  # (1, C, h, w)
        if c.dummy_first:
            self.bring("wavlm", "beats")
            dummy = self.audio.encode(wave, 0, 1)  # (1, 2, D)
        report = progress or (lambda *_: None)
        few = 1 if self.low_memory else 4  # more at a time are no faster, and fill a GPU's memory

        def keyframes(window: int) -> Tensor:
            """Usable latents of one window, (14 or 13, C, h, w)."""
            frames = plan.window(window)
            first, last = frames[plan.dummy_first], frames[-1]
            self.bring("wavlm", "beats")
            sound = self.audio.encode(wave, first, last + 1)[::plan.spacing]
            if plan.dummy_first:
                sound = torch.cat([dummy, sound])  # (T, 2, D)
            self.bring("keyframe")
            known = self.keyframe.conditions(identity, sound[None], curve[frames][None])
            shape = (1, c.keyframe.frames, *identity.shape[1:])
            noise = diffusion.seeded_noise(seed, 0, window, shape)
            sigmas = diffusion.schedule(steps, c.keyframe.sigma_max)
            guided = guided_keyframes(self.keyframe.denoise, known, id_guidance, audio_guidance,
                                      batched=not self.low_memory)
            for i, x in enumerate(diffusion.sample(guided, noise.to(self.device), sigmas)):
                done = window * (len(sigmas) - 1) + i + 1
                report("keyframes", done, plan.windows * (len(sigmas) - 1))
            return x[0, plan.dummy_first:]

        def between(group: int, keys: Tensor) -> Tensor:
            """Latents of a group's frames, (frames, C, h, w), first and last keyframe included."""
            segments = plan.segments(group)
            first, last = segments[0][0], segments[-1][1]
            self.bring("wav2vec2" if c.interp_audio else "wavlm", "beats")
            sound = self.interp_audio.encode(wave, first, last + 1)
            self.bring("interp", "interp_bad")
            ends = torch.stack([keys[:-1], keys[1:]], dim=1)  # (segments, 2, C, h, w)
            tokens = torch.stack([sound[a - first:b - first + 1] for a, b in segments])
            known = self.interp.conditions(ends, tokens)
            bad_known = self.interp_bad and self.interp_bad.conditions(ends, tokens)
            shape = (c.interp.frames, *identity.shape[1:])
            noise = torch.stack([diffusion.seeded_noise(seed, 1, a // plan.spacing, shape)
                                 for a, _ in segments]).to(self.device)
            if c.average_shared:
                noise[:-1, -1] = noise[1:, 0]  # both copies of a shared frame start alike
            sigmas = diffusion.schedule(steps, c.interp.sigma_max)
            steps_done = sum(len(plan.segments(g)) for g in range(group)) * (len(sigmas) - 1)
            after_step = diffusion.share_ends if c.average_shared else None
            guided = guided_segments(self.interp.denoise, known, autoguidance,
                                     self.interp_bad and self.interp_bad.denoise, bad_known, few)
            for i, x in enumerate(diffusion.sample(guided, noise, sigmas, after_step)):
                done = steps_done + len(segments) * (i + 1)
                report("frames", done, (plan.keyframes - 1) * (len(sigmas) - 1))
            return diffusion.merge(x)

        first = max(start - 1, 0) // plan.span  # the group that writes `start`
        current = keyframes(first)
        for group in range(first, plan.groups):
            following = keyframes(group + 1) if group + 1 < plan.windows else None
            if plan.keyframes == 1:
                latents = current[:1]
            else:
                keys = current if following is None else torch.cat([current, following[:1]])
                latents = between(group, keys[:len(plan.segments(group)) + 1])
            own = plan.written(group)
            latents = latents[own.start - group * plan.span:][:len(own)]
            for begin, part in zip(own[::few], latents.split(few)):
                self.bring("vae")
                images = ((self.vae.to_images(part) + 1) * 127.5).round().byte()
                yield from images.permute(0, 2, 3, 1).cpu().numpy()[max(start - begin, 0):]
            current = following
