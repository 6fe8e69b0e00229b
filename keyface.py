"""KeyFace (CVPR 2025, arXiv 2503.01715): one image and one sound to a talking face of any length.

`Plan` says which frames of a long video are made where, and `KeyFace` makes them: keyframes a
window at a time (stage 1), then the frames between neighbouring keyframes a group of segments at a
time (stage 2). The two models are in stage.py, the diffusion itself in diffusion.py.

Images are RGB in [-1, 1], (H, W, 3) uint8 where they come in and go out; sound is 16 kHz mono (L,).
N video frames, S = 13 frames from keyframe to keyframe, T = 14 frames a window or a segment,
latents (T, C, h, w), audio tokens (T, 2, D_a). The README has more of the alphabet.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import diffusion
from audio import AudioEncoder
from emotion import emotion_curve
from stage import Config, Stage, guided_keyframes, guided_segments
from tools.checkpoint import check_header, fitting, header_number, load_config, load_part
from tools.cli import InputError
from tools.media import frame_count, read_audio, read_image
from vae import VAE, brightness_error

# ---- the plan of a long video (paper: long sequences) --------------------------------------


@dataclass
class Plan:
    r"""Which of the N frames of a video is made where, on a fixed grid that starts at frame 0.

    A window is T = 14 keyframes, S = 13 frames apart; windows know nothing of each other. A segment
    is the 14 consecutive frames from one keyframe to the next, both included, so neighbouring
    segments share a frame. A group is the segments that begin at the keyframes of one window:

        frame      0     13    26         169   182   195         351   364
        windows    K-----K-----K--  ...  --K  |  K-----K--  ...  --K  |  K--
                   \_____ window 0 ________/     \____ window 1 ___/
        segments   [=====]                 [=====]                 [=====]
                         [=====]                 [=====]
        groups     \________ group 0 ___________/\________ group 1 ______/
                                                 ^ group 0 ends on the first keyframe of window 1

    The last segment of a group ends on a keyframe of the *next* window, and so interpolation hides
    the seam between the two. Both groups make the frame where they meet (182 above); nothing is
    averaged across groups: the earlier group hands the frame out, and the later one drops it.

    With the released weights (`dummy_first`) the first element of each window is a dummy, sampled
    like the rest, with frame 0's sound and emotion, and thrown away: 13 usable keyframes, not 14.
    """

    total: int  # N
    spacing: int = 13  # S
    frames: int = 14  # T
    dummy_first: bool = False

    @property
    def keyframes(self) -> int:
        """The number of keyframes 0, 13, 26, ... up to the first index >= N - 1."""
        return -(-(self.total - 1) // self.spacing) + 1

    @property
    def per_window(self) -> int:
        """The number of usable keyframes of a window."""
        return self.frames - self.dummy_first

    @property
    def windows(self) -> int:
        """The number of windows of keyframes."""
        return -(-self.keyframes // self.per_window)

    @property
    def groups(self) -> int:
        """The number of groups, one a window; a last window of one keyframe needs none."""
        return max(1, -(-(self.keyframes - 1) // self.per_window))

    def window(self, index: int) -> list[int]:
        """Video frames of the T elements of window `index`; the dummy stands for frame 0."""
        first = index * self.per_window
        return [0] * self.dummy_first + [(first + i) * self.spacing for i in range(self.per_window)]

    def segments(self, group: int) -> list[tuple[int, int]]:
        """The first and last video frame of each segment of a group."""
        start = group * self.per_window
        stop = min(start + self.per_window, self.keyframes - 1)
        return [(k * self.spacing, (k + 1) * self.spacing) for k in range(start, stop)]

    @property
    def stride(self) -> int:
        """The number of video frames from the beginning of one group to that of the next."""
        return self.per_window * self.spacing

    def output_frames(self, group: int) -> range:
        """The video frames that a group hands out: all that it makes up to the end of the sound.
        Every group but the first leaves out its first frame, which the group before has handed
        out."""
        start = group * self.stride
        return range(start + (group > 0), min(start + self.stride + 1, self.total))

    @property
    def padded(self) -> int:
        """The number of frames of sound and emotion that the plan looks at. The last window is
        whole, so some of them lie past the end."""
        return self.window(self.windows - 1)[-1] + 1


# ---- the generator ----------------------------------------------------------------------------


@dataclass
class Film:
    """A video while it is being made: what is known of it, and how it is to be sampled."""

    plan: Plan
    identity: Tensor  # (1, C, h, w) latents of the identity frame
    wave: Tensor  # (L,) the whole sound
    dummy: Tensor | None  # (1, 2, D_a) audio tokens of a window's dummy element, if it has one
    emotion: Tensor  # (plan.padded, 2) valence and arousal in [-1, 1]
    steps: int
    id_guidance: float
    audio_guidance: float
    autoguidance: float
    seed: int
    report: Callable[[str, int, int], None]  # `progress` of KeyFace.animate


class KeyFace:
    """Both stages, the autoencoder and the audio encoders, ready to animate.

        model = KeyFace.load("weights/tiny")
        for frame in model.animate("face.png", "talk.wav", "0:neutral 2.5:happy"):
            ...  # uint8 (H, W, 3), 25 a second
    """

    def __init__(self, config: Config, device: str = "cpu", low_memory: bool = False):
        self.config, self.size = config, config.size  # side of the generated image in pixels
        self.device, self.low_memory = torch.device(device), low_memory
        # More segments or images at a time are no faster on a CPU, and would fill a GPU's memory.
        self.batch = 1 if low_memory else 4
        self.keyframe = Stage(config.keyframe)
        self.interp = Stage(config.interp)
        self.interp_bad: Stage | None = Stage(config.interp)
        self.vae = VAE(config.vae)
        self.familiar_error: float | None = None  # see `unlike`
        self.audio = self.interp_audio = AudioEncoder(config.audio)
        if config.interp_audio:
            self.interp_audio = AudioEncoder(config.interp_audio)
            self.interp_audio.events = self.audio.events

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", low_memory: bool = False) -> "KeyFace":
        """Reads a weights folder: config.json and one safetensors file a part; interp_bad may be
        absent. (The published files are read by tools/released.py.) With `low_memory` parts are on
        the device only while they work, and work on one segment or image at a time. Raises
        InputError for a missing, damaged or mismatched file."""
        folder = Path(folder)
        # On the meta device modules take no memory: the weights bring theirs along.
        with torch.device("meta"), fitting(folder / "config.json"):
            model = KeyFace(load_config(Config, folder).check(), device, low_memory)
        if not (folder / "interp_bad.safetensors").exists():
            model.interp_bad = None
        for name, module in model.parts().items():
            path = folder / f"{name}.safetensors"
            load_part(path, module, model.device, model.parts())
            if name == "vae":
                check_header(path, model.config.vae)
                model.familiar_error = header_number(path, "familiar_error")
            module.eval().requires_grad_(False).to("cpu" if low_memory else device)
        return model

    @staticmethod
    def load_frozen(folder: str | Path) -> "KeyFace":
        """The model of a weights folder with only its frozen parts read, the autoencoder and the
        audio encoders; the two stages are as they are initialised. Training starts from it."""
        with fitting(Path(folder) / "config.json"):
            model = KeyFace(load_config(Config, folder).check())
        for name in model.config.frozen():
            module = model.parts()[name]
            load_part(Path(folder) / f"{name}.safetensors", module)
            module.eval().requires_grad_(False)
        return model

    def parts(self) -> dict[str, nn.Module]:
        """The modules of a weights folder, by file name."""
        parts = {"keyframe": self.keyframe, "interp": self.interp, "interp_bad": self.interp_bad,
                 "vae": self.vae, "wavlm": self.audio.speech, "beats": self.audio.events,
                 "wav2vec2": self.interp_audio.speech if self.config.interp_audio else None}
        return {name: module for name, module in parts.items() if module is not None}

    def bring(self, *names: str) -> None:
        """With `low_memory`, moves these parts to the device and all others off it."""
        if self.low_memory:
            parts = self.parts()
            for name in parts.keys() - set(names):  # the others leave first, to make room
                parts[name].to("cpu")
            for name in parts.keys() & set(names):
                parts[name].to(self.device)

    def plan(self, frames: int) -> Plan:
        """How a video of so many frames is made up."""
        c = self.config
        return Plan(frames, c.keyframe.spacing, c.keyframe.frames, c.dummy_first)

    @torch.no_grad()
    def unlike(self, picture: np.ndarray) -> str | None:
        """Why a picture (H, W, 3) uint8 of the model's size is unlike the faces these weights were
        trained on: the autoencoder reconstructs it worse than it does training faces. None where it
        is not worse, or where the weights state no limit."""
        if not self.familiar_error:
            return None
        self.bring("vae")
        pixels = torch.from_numpy(picture).to(self.device).movedim(-1, -3)[None] / 127.5 - 1
        error = brightness_error(self.vae, pixels).item()
        if error <= self.familiar_error:
            return None
        return ("looks unlike the faces these weights were trained on (autoencoder's error "
                f"{error:.3f}, the limit is {self.familiar_error:.3f}); the video may not "
                "resemble it")

    @torch.no_grad()
    def animate(self, image: str | Path | np.ndarray, audio: str | Path | np.ndarray,
                emotion: str | Path | np.ndarray = "neutral", *, steps: int | None = None,
                id_guidance: float | None = None, audio_guidance: float | None = None,
                autoguidance: float | None = None, seed: int = 0, start: int = 0,
                progress: Callable[[str, int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Yields ceil(25 x seconds) frames, uint8 (H, W, 3), or those from number `start` on,
        without making the groups before. A group comes as soon as it is done; memory grows with the
        sound alone.

        image: a path, or uint8 (H, W, 3) of any size; audio: a path, or float (L,) at 16 kHz
        in [-1, 1]; emotion as in `emotion_curve`; guidance weights and steps default to the
        config's. progress(stage, done, total) is called after every step of the sampler: they count
        steps times windows (stage "keyframes") or steps times segments ("frames"). Raises
        InputError for what cannot be used, but only when the first frame is asked for.
        """
        c = self.config
        given = {"steps": steps, "id_guidance": id_guidance, "audio_guidance": audio_guidance,
                 "autoguidance": autoguidance}
        settings = {k: getattr(c, k) if v is None else v for k, v in given.items()}
        if settings["steps"] < 1 or seed < 0:
            raise InputError(f"steps: {settings['steps']} (at least 1), seed: {seed} (at least 0)")
        if not all(map(math.isfinite, settings.values())):
            raise InputError("id_guidance, audio_guidance and autoguidance must be finite numbers")
        image, audio = read_image(image, c.size), read_audio(audio)

        # The plan follows from the sound's length alone; the emotion's curve is made to fit it. The
        # identity frame is encoded once. Every window is told the same latents of it, and none is
        # told what another window has made: this is why a face does not drift, however long.
        plan = self.plan(frame_count(len(audio)))
        if not 0 <= start < plan.total:
            raise InputError(f"start: {start}; the video has frames 0 to {plan.total - 1}")
        curve = torch.from_numpy(emotion_curve(emotion, plan.padded)).to(self.device)
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None] / 127.5 - 1
        self.bring("vae")
        identity, wave = self.vae.to_latents(pixels), torch.from_numpy(audio).to(self.device)
        self.bring("wavlm", "beats")
        dummy = self.audio.encode(wave, 0, 1) if c.dummy_first else None
        film = Film(plan, identity, wave, dummy, curve, **settings, seed=seed,
                    report=progress or (lambda *_: None))

        # A group needs the keyframes of its own window and the first one of the next. That window
        # is sampled now and kept for the group to come, so two windows are in memory, never more.
        first = max(start - 1, 0) // plan.stride  # the group that hands out `start`
        current = self.sample_keyframes(film, first)
        for group in range(first, plan.groups):
            following = self.sample_keyframes(film, group + 1) if group + 1 < plan.windows else None
            if plan.keyframes == 1:
                latents = current[:1]
            else:
                keys = current if following is None else torch.cat([current, following[:1]])
                latents = self.sample_segments(film, group, keys[:len(plan.segments(group)) + 1])
            own = plan.output_frames(group)
            own = range(max(own.start, start), own.stop)
            for part in latents[own.start - group * plan.stride:][:len(own)].split(self.batch):
                self.bring("vae")
                images = ((self.vae.to_images(part) + 1) * 127.5).round().byte()
                yield from images.permute(0, 2, 3, 1).cpu().numpy()
            current = following  # all else of this group is forgotten: memory stays as it is

    def sample_keyframes(self, film: Film, window: int) -> Tensor:
        """Stage 1: the usable keyframes of one window, latents (14 or 13, C, h, w)."""
        c, plan = self.config, film.plan
        # The encoders hear the sound from the first to the last keyframe and a bit around it (the
        # released ones all of it, up to two minutes). The network gets every 13th frame's tokens.
        frames = plan.window(window)
        first, last = frames[plan.dummy_first], frames[-1]
        self.bring("wavlm", "beats")
        audio_tokens = self.audio.encode(film.wave, first, last + 1)[::plan.spacing]
        if plan.dummy_first:
            audio_tokens = torch.cat([film.dummy, audio_tokens])  # (T, 2, D_a)

        # From pure noise, level by level, to clean latents: all T keyframes of the window at once,
        # so that they agree with each other.
        self.bring("keyframe")
        known = self.keyframe.conditions(film.identity, audio_tokens[None],
                                         film.emotion[frames][None])
        guided = guided_keyframes(self.keyframe.denoise, known, film.id_guidance,
                                  film.audio_guidance, batched=not self.low_memory)
        shape = (1, c.keyframe.frames, *film.identity.shape[1:])  # (1, T, C, h, w)
        noise = diffusion.seeded_noise(film.seed, 0, window, shape).to(self.device)
        sigmas = diffusion.schedule(film.steps, c.keyframe.sigma_max)
        levels = len(sigmas) - 1
        for i, x in enumerate(diffusion.sample(guided, noise, sigmas)):
            film.report("keyframes", window * levels + i + 1, plan.windows * levels)
        return x[0, plan.dummy_first:]

    def sample_segments(self, film: Film, group: int, keys: Tensor) -> Tensor:
        """Stage 2: all frames from the first to the last of the keyframes `keys` (k + 1, C, h, w),
        made as k segments at once: latents (13 k + 1, C, h, w)."""
        c, plan = self.config, film.plan
        segments = plan.segments(group)
        first, last = segments[0][0], segments[-1][1]
        self.bring("wav2vec2" if c.interp_audio else "wavlm", "beats")
        tokens = self.interp_audio.encode(film.wave, first, last + 1)
        audio_tokens = torch.stack([tokens[a - first:b - first + 1] for a, b in segments])

        # What a segment is told: its two keyframes and the sound of each of its 14 frames. The two
        # ends are generated too, not copied from the keyframes, so that motion is continuous.
        self.bring("interp", "interp_bad")
        ends = torch.stack([keys[:-1], keys[1:]], dim=1)  # (k, 2, C, h, w)
        known = self.interp.conditions(ends, audio_tokens)
        bad_known = self.interp_bad and self.interp_bad.conditions(ends, audio_tokens)
        guided = guided_segments(self.interp.denoise, known, film.autoguidance,
                                 self.interp_bad and self.interp_bad.denoise, bad_known, self.batch)
        shape = (c.interp.frames, *film.identity.shape[1:])  # (T, C, h, w)
        noise = torch.stack([diffusion.seeded_noise(film.seed, 1, a // plan.spacing, shape)
                             for a, _ in segments]).to(self.device)
        # The paper averages the two copies of a shared frame while it samples: here both start from
        # the same noise, and after each step both are set to their mean. Otherwise segments are
        # sampled apart, and `merge` averages finished latents (the published code: pixels).
        after_step = None
        if c.average_shared:
            noise[:-1, -1] = noise[1:, 0]
            after_step = diffusion.share_ends
        sigmas = diffusion.schedule(film.steps, c.interp.sigma_max)
        levels = len(sigmas) - 1
        before = group * plan.per_window * levels  # steps of the groups before, which are all full
        for i, x in enumerate(diffusion.sample(guided, noise, sigmas, after_step)):
            film.report("frames", before + len(segments) * (i + 1), (plan.keyframes - 1) * levels)
        return diffusion.merge(x)
