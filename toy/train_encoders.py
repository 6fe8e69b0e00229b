"""Trains the tiny WavLM and BEATs on toy sound with labels: `python -m toy.train_encoders`.

The paper's encoders come pretrained and frozen; these stand in for them. WavLM learns
what is said: the phoneme at each 20 ms token and at its neighbours, and the lips that go with it,
so that a single token tells a mouth that is co-articulated. BEATs learns the kind of sound event
and the gesture that goes with it. Both hear chunks cut as `AudioEncoder` cuts them.
Writes `wavlm.safetensors` and `beats.safetensors` (fp16; beside them `wavlm.state` and
`beats.state` for --resume), and prints what they know of voices, sentences and vocalisations that
they have never heard. Several processes share each batch, as in the other trainings:
`torchrun --nproc_per_node 2 -m toy.train_encoders`.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio import MARGIN, AudioConfig, AudioEncoder, cut, fbank, speech_view
from tools.checkpoint import code_version, load_part, load_state, save_part, save_state
from tools.cli import InputError, Parser, make_folder, number, remember_signals, run
from tools.media import FRAME_SAMPLES
from tools.muon import Muon
from tools.processes import Processes
from tools.stats import correlation
from toy.faces import STATE
from toy.readout import read, ridge
from toy.voices import PHONEMES, VISEME_CLASSES
from toy.world import EVENTS, Clip, kind_of, make_clip

LR, EAR_LR, WARM_UP = 4e-3, 8e-3, 60
STEPS, EAR_STEPS = {"wavlm": 9000, "beats": 2500}, 300
CLIPS = {"wavlm": 8000, "beats": 3000}  # to learn from; of 3,000 WavLM learns some by heart
BATCH_FRAMES = 960  # four whole chunks; at first short ones, whose attention is cheaper
SHORT, SHORT_PART = 60, .85  # frames; share of the steps
# What is no inner matrix: the layers that hear first and the heads, and biases of attention.
ENDS = ("conv_layers.0.", "patch_embedding", "head.", "gru_rel", "rel_attn", "grep_",
        "relative_attention_bias", "weight_g", "original0")
OFFSETS = (-4, -2, 0, 2, 4)  # of the phonemes that a token is to know, in tokens of 20 ms
LIPS = [STATE.index(name) for name in ("jaw", "width", "rounding", "bite", "tongue")]
SHUT = .05  # of the jaw: closed lips
GESTURE = [STATE.index(name) for name in ("jaw", "cheek", "eye_open", "brow_height", "head_y")]


def chunk_of(clip: Clip, rng: np.random.Generator, n: int) -> tuple[Tensor, ...]:
    """A chunk of n frames as `AudioEncoder` cuts it: from within a recording, or into its end.

    Returns sound (640 n + 2 MARGIN,) of random loudness, phonemes (2 n,), events (n,),
    state (n, S) and which frames lie within the recording (n,).
    """
    frames = len(clip.event)
    start = rng.integers(0, frames - n + 1)
    stop = frames if rng.random() < .7 else start + rng.integers(n // 8, n)
    wave = torch.from_numpy(clip.wave[: stop * FRAME_SAMPLES]).float()
    sound = cut(wave, start * FRAME_SAMPLES - MARGIN, (start + n) * FRAME_SAMPLES + MARGIN)
    loudest = 1 / sound.abs().max().clamp(min=1e-3).item()
    gain = min(math.exp(rng.uniform(math.log(.2), math.log(2))), loudest)

    def frames_of(track: np.ndarray, per_frame: int = 1) -> Tensor:
        part = torch.from_numpy(track[start * per_frame : min(stop, start + n) * per_frame])
        return F.pad(part, (0, 0) * (part.dim() - 1) + (0, n * per_frame - len(part)))

    heard = frames_of(np.ones(frames, bool))
    return (sound * gain, frames_of(clip.phoneme, 2), frames_of(clip.event),
            frames_of(clip.state), heard)


def squared_error(predicted: Tensor, state: Tensor, columns: list[int], heard: Tensor) -> Tensor:
    """Of some columns of the state, within the recordings, in units of each column's variance."""
    truth = state[..., columns][heard]
    return ((predicted[heard] - truth).square().mean(0) / truth.var(0).clamp(min=1e-3)).mean()


class SpectrumHead(nn.Module):
    """What WavLM's convolutions (B, 2 n, C) are trained to tell first: the log spectrum (128 mel
    bands) of the very samples that each feature sees. From the waveform alone they would find
    phonemes only slowly."""

    def __init__(self, width: int):
        super().__init__()
        self.spectrum = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))

    def loss(self, features, sound, *_) -> Tensor:
        spectrum = (fbank(speech_view(sound))[:, ::2] - 15) / 6.5  # (B, 2 n, 128), a row each 20 ms
        return F.mse_loss(self.spectrum(features), spectrum)


class PhonemeHead(nn.Module):
    """What WavLM's features (B, n, 2, C) are trained to tell by linear maps: phonemes, lips, and
    whether these are closed, which squared errors care little for and eyes very much."""

    def __init__(self, width: int):
        super().__init__()
        self.phonemes = nn.Linear(width, len(OFFSETS) * len(PHONEMES))
        self.lips = nn.Linear(width, len(LIPS))
        self.closed = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, 2 n, offset, phoneme)."""
        return self.phonemes(features.flatten(1, 2)).unflatten(-1, (len(OFFSETS), -1))

    def loss(self, features, sound, phoneme, event, state, heard) -> Tensor:
        reach = OFFSETS[-1]
        padded = F.pad(phoneme, (reach, reach), value=-100)  # no phoneme known there
        shifted = [padded[:, reach + o : reach + o + phoneme.shape[1]] for o in OFFSETS]
        wanted = torch.stack(shifted, -1)
        phonemes = F.cross_entropy(self(features).flatten(0, 2), wanted.flatten())
        frames = features.mean(2)
        shut = (state[..., STATE.index("jaw")] < SHUT).float()
        closed = F.binary_cross_entropy_with_logits(self.closed(frames)[..., 0][heard], shut[heard])
        return phonemes + squared_error(self.lips(frames), state, LIPS, heard) + 4 * closed


class EventHead(nn.Module):
    """What BEATs' features (B, n, 2, C) are trained to tell by linear maps."""

    def __init__(self, width: int):
        super().__init__()
        self.events = nn.Linear(width, len(EVENTS))
        self.gesture = nn.Linear(width, len(GESTURE))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, n, event)."""
        return self.events(features.mean(2))

    def loss(self, features, sound, phoneme, event, state, heard) -> Tensor:
        events = F.cross_entropy(self(features).flatten(0, 1), event.flatten())
        return events + .5 * squared_error(self.gesture(features.mean(2)), state, GESTURE, heard)


@cache
def clip_of(seed: int) -> Clip:
    """A clip to learn from, made when it is first asked for."""
    clip = make_clip(seed, "train", 10, kind_of(seed))
    clip.wave = clip.wave.astype(np.float16)  # half the memory
    return clip


class Objective(nn.Module):
    """An encoder and the head that it is trained with, as one module that processes can share."""

    def __init__(self, encoder: nn.Module, encode: Callable[[Tensor], Tensor], head: nn.Module):
        super().__init__()
        self.encoder, self.head, self.encode = encoder, head, encode

    def forward(self, sound: Tensor, *labels: Tensor) -> Tensor:
        """The loss of a batch of chunks, whose features `encode` gives."""
        return self.head.loss(self.encode(sound), sound, *labels)


def fit(name: str, objective: Objective, clips: int, chunk: int, steps: int, lr: float,
        processes: Processes, signals: list[int], save: Callable[[dict], None],
        state: dict | None = None) -> None:
    """Trains an encoder and its head on so many `clips` for `steps`, or goes on from a `state`,
    with the objective as it was then. Now and then, and at the end, `save` gets a state. Ends early
    when there is one of the `signals`."""
    objective.to(processes.device)
    objective.encoder.requires_grad_(True)
    optimizer = Muon(objective, lr, ENDS)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    parallel = processes.parallel(objective, some_unused=True)
    step = first = state["step"] if state else 0
    start = reported = saved = time.monotonic()
    running, stopped = 0.0, bool(signals)
    while step < steps and not stopped:
        decay = math.cos(step / steps * math.pi / 2) ** 2
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / WARM_UP) * (.01 + .99 * decay)
        n = SHORT if step < SHORT_PART * steps else chunk
        # The batch follows from the number of the step, whatever the number of processes. Each row
        # has clips of its own, so that no process makes those of another.
        rows = BATCH_FRAMES // n
        picked = np.random.default_rng(step).integers(-(-clips // rows), size=rows)
        picked = (picked * rows + np.arange(rows)) % clips
        chunks = [chunk_of(clip_of(seed), np.random.default_rng([step, seed]), n)
                  for seed in picked[processes.rows(rows)].tolist()]
        batch = [torch.stack(x).to(processes.device) for x in zip(*chunks, strict=True)]
        loss = parallel(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        step += 1
        running += (loss.item() - running) * max(.02, 1 / (step - first))
        [stopped] = processes.agree([float(bool(signals))])
        now, done = time.monotonic(), step == steps or stopped
        if processes.rank == 0 and (now - reported > 30 or done):
            print(f"{name}  {(now - start) / 60:5.1f} min  step {step}  loss {running:.3f}  "
                  f"{(step - first) / (now - start):.2f} steps/s", flush=True)
            reported = now
        if processes.rank == 0 and (now - saved > 120 or done):
            save({"objective": objective.state_dict(), "optimizer": optimizer.state_dict(),
                  "step": step})
            saved = now
    objective.encoder.requires_grad_(False)
    objective.cpu()


def share(right: Tensor) -> float:
    return right.double().mean().item()


@torch.no_grad()
def evaluate(encoder: AudioEncoder, heads: dict[str, nn.Module], clips: list[Clip],
             unheard: list[Clip]) -> dict[str, float]:
    """What the frozen encoders, as far as `heads` are of them, tell of whole unheard clips; the
    mouth by a linear read-out."""
    def tokens_of(some: list[Clip]) -> Tensor:
        waves = (torch.from_numpy(clip.wave).float() for clip in some)
        return torch.cat([encoder(wave) for wave in waves])  # (N, 2, D)

    def all_of(name: str, some: list[Clip]) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(clip, name)) for clip in some])

    width, tokens = encoder.config.wavlm.hidden_size, tokens_of(unheard)
    own = slice(0 if "wavlm" in heads else width, None if "beats" in heads else width)
    phoneme, event, state = (all_of(name, unheard) for name in ("phoneme", "event", "state"))
    speech = event <= EVENTS.index("speech")
    figures = {}
    if "wavlm" in heads:
        scores = heads["wavlm"](tokens[None, ..., :width])[0, :, OFFSETS.index(0)]
        right = scores.argmax(-1) == phoneme
        figures |= {"phonemes right, 20 ms tokens": share(right),
                    "the same without silence": share(right[phoneme > 0])}
        lips = heads["wavlm"].closed(tokens[..., :width].mean(1))[:, 0]
        bilabial = all_of("viseme", unheard) == VISEME_CLASSES.index("m b p")
        figures["lips heard closed on m, b, p"] = share(lips[bilabial] > 0)
    if "beats" in heads:
        right = heads["beats"](tokens[None, ..., width:])[0].argmax(-1) == event
        figures |= {"events right, frames": share(right),
                    "vocalisations right": share(right[~speech])}
    weight = ridge(tokens_of(clips)[..., own].mean(1), all_of("state", clips))  # (D + 1, S)
    mouth = read(tokens[..., own].mean(1), weight)
    for name in ("jaw", "width", "rounding"):
        column = STATE.index(name)
        x, y = (each[:, column].numpy() for each in (mouth, state))
        figures[f"correlation of {name}"] = correlation(x, y)
        figures[f"correlation of {name}, no vocalisation"] = correlation(x[speech], y[speech])
    return figures


def save_weights(name: str, encoder: AudioEncoder, args: Namespace, **about: object) -> None:
    part, sizes = {"wavlm": (encoder.speech, encoder.config.wavlm),
                   "beats": (encoder.events, encoder.config.beats)}[name]
    save_part(args.out / f"{name}.safetensors", part.state_dict(), config=asdict(sizes),
              clips=args.clips or CLIPS[name], version=code_version(), **about)


def train(name: str, encoder: AudioEncoder, args: Namespace, processes: Processes,
          signals: list[int]) -> nn.Module:
    """Trains "wavlm" or "beats" of the encoder, or goes on with what args.out holds, and writes it
    there. Returns its head."""
    config = encoder.config
    part, encode, head, sizes = {
        "wavlm": (encoder.speech, encoder.speech_aligned, PhonemeHead, config.wavlm),
        "beats": (encoder.events, encoder.events_aligned, EventHead, config.beats)}[name]
    path, chunk = args.out / f"{name}.state", config.chunk_frames
    steps, clips = args.steps or STEPS[name], args.clips or CLIPS[name]
    objective, state = Objective(part, encode, head(config.width // 2)), None

    def save(state: dict) -> None:
        save_weights(name, encoder, args, step=state["step"])
        save_state(path, state)

    def hear(sound: Tensor) -> Tensor:
        return encoder.speech.feature_extractor(speech_view(sound)).mT  # (B, 2 n, C)

    if args.resume and any(args.out.glob(f"{path.name}*")):
        state = load_state(path)
        try:
            objective.load_state_dict(state["objective"])
        except (KeyError, RuntimeError):
            raise InputError(f"--resume: {path} is of another network") from None
    elif name == "wavlm":
        ears = Objective(part.feature_extractor, hear, SpectrumHead(sizes.conv_dim[-1]))
        fit("ears", ears, clips, chunk, min(steps, EAR_STEPS), EAR_LR, processes, signals,
            lambda _: None)
    fit(name, objective, clips, chunk, steps, LR, processes, signals, save, state)
    return objective.head


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=number(int, 1, 10**9), help="of training (default: "
                        + ", ".join(f"{steps} for {name}" for name, steps in STEPS.items()) + ")")
    parser.add_argument("--clips", type=number(int, 80, 10**6), help="clips of 10 s to train on "
                        "(default: "
                        + ", ".join(f"{clips} for {name}" for name, clips in CLIPS.items()) + ")")
    parser.add_argument("--part", choices=tuple(STEPS), help="train only this one")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="weights folder")
    parser.add_argument("--resume", action="store_true", help="continue what --out holds")
    args = parser.parse_args(argv)
    make_folder(args.out)
    processes, signals = Processes.join(), remember_signals()
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioConfig.tiny())
    heads = {name: train(name, encoder, args, processes, signals)
             for name in STEPS if args.part in (None, name)}
    if processes.rank == 0 and not signals:
        for name, part in (("wavlm", encoder.speech), ("beats", encoder.events)):
            path = args.out / f"{name}.safetensors"
            if path.exists():
                load_part(path, part)  # judged as it is kept, rounded to fp16
        heard = [make_clip(seed, "train", 10, kind_of(seed)) for seed in range(80)]
        unheard = [make_clip(seed, "test", 20, kind_of(seed)) for seed in range(30)]
        figures = evaluate(encoder, heads, heard, unheard)
        for name, value in figures.items():
            print(f"{name:32} {value:.3f}")
        for name in heads:
            save_weights(name, encoder, args, step=args.steps or STEPS[name], figures=figures)
    processes.leave()


if __name__ == "__main__":
    sys.exit(run(main))
