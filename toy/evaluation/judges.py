"""The judges of the toy world: small networks that measure from pixels alone what the world knows.

Four of them: *states* (the 15 numbers of a face, valence and arousal), *identity* (an embedding),
and from the judged states over time *events* (speech or which vocalisation) and *lips* (a lip
reader that names visemes). The first two learn from drawn frames and from the same after the
autoencoder, else they misread generated ones; the others from true states with the first one's
error. All see the train split alone. `python -m toy.evaluation.judges`, after toy.train_vae, writes
`judges.safetensors` and prints each one's own error on the test split, drawn and after the
autoencoder: the ceiling of every model that uses it.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.checkpoint import header_config, header_number, load_part, save_part
from tools.cli import Parser, number, run
from toy.faces import STATE, draw, random_identity
from toy.voices import VISEME_CLASSES
from toy.world import EVENTS, KINDS, Clip, frames, make_clip
from vae import VAE, VAEConfig, brightness_error

JUDGED = (*STATE, "valence", "arousal")
SIZE = 64                     # side of the pictures that the judges look at
MOUTH = 6                     # the first columns of JUDGED, which the lip reader sees
TRAIN, TEST = 50_000_000, 60_000_000      # first seeds of their clips, in either split
BOTH = ("drawn", "decoded")


def trunk(out: int) -> nn.Sequential:
    """Pictures (N, 3, SIZE, SIZE) -> features (N, out); where things are is kept to the end."""
    layers = []
    for c_in, c, kernel in ((3, 24, 5), (24, 32, 3), (32, 48, 3), (48, 64, 3)):
        layers += [nn.Conv2d(c_in, c, kernel, stride=2, padding=kernel // 2),
                   nn.GroupNorm(8, c), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIZE // 16) ** 2, out))


def over_time(channels: int, hidden: int, out: int, kernel: int, depth: int) -> nn.Sequential:
    """Convolutions along time: (B, channels, N) -> (B, out, N)."""
    layers = []
    for i in range(depth):
        layers += [nn.Conv1d(hidden if i else channels, hidden, kernel, padding=kernel // 2),
                   nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv1d(hidden, out, 1))


class Judges(nn.Module):
    """All four. Frames are (N, 3, H, W) in [-1, 1], of any size, in order where time matters."""

    def __init__(self):
        super().__init__()
        self.state_trunk = nn.Sequential(trunk(160), nn.SiLU(), nn.Linear(160, len(JUDGED)))
        self.register_buffer("mean", torch.zeros(len(JUDGED)))
        self.register_buffer("std", torch.ones(len(JUDGED)))
        self.face_trunk = trunk(64)
        self.event_net = over_time(len(STATE), 48, len(EVENTS), kernel=9, depth=3)
        self.lip_net = over_time(MOUTH, 64, len(VISEME_CLASSES), kernel=5, depth=3)

    @staticmethod
    def load(path: Path) -> "Judges":
        """What `python -m toy.evaluation.judges` wrote; their error is "report" in its header."""
        judges = Judges().eval()
        load_part(path, judges)
        return judges

    def normalised(self, states: Tensor) -> Tensor:
        return (states - self.mean) / self.std

    @torch.inference_mode()
    def states(self, frames: Tensor) -> Tensor:
        """(N, 17): the columns of JUDGED."""
        judged = torch.cat([self.state_trunk(f) for f in at_size(frames).split(64)])
        return judged * self.std + self.mean

    @torch.inference_mode()
    def identity(self, frames: Tensor) -> Tensor:
        """(N, 64) unit vectors; their dot product tells how much two faces are the same person."""
        found = torch.cat([self.face_trunk(f) for f in at_size(frames).split(64)])
        return F.normalize(found, dim=1)

    @torch.inference_mode()
    def look(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`states` (N, 17), `identity` (N, 64) and what both trunks see (N, 224), for distances
        between sets of pictures: in one go."""
        pieces = at_size(frames).split(16)
        seen = torch.cat([torch.cat([self.state_trunk[0](f), self.face_trunk(f)], 1)
                          for f in pieces])
        state, face = seen.split((160, 64), 1)
        return self.state_trunk[1:](state) * self.std + self.mean, F.normalize(face, dim=1), seen

    @torch.inference_mode()
    def over_clips(self, states: Tensor, length: int = 16) -> Tensor:
        """Judged states (N, 17) -> (N // length, 112): what the two networks that look along time
        see in each clip of so many frames, for distances between sets of clips."""
        x = self.normalised(states).T[None]
        seen = [self.event_net[:-1](x[:, :len(STATE)]), self.lip_net[:-1](x[:, :MOUTH])]
        return F.avg_pool1d(torch.cat(seen, 1), length)[0].T if x.shape[2] >= length else (
            x.new_empty(0, sum(part.shape[1] for part in seen)))

    @torch.inference_mode()
    def events(self, states: Tensor) -> Tensor:
        """Judged states (N, 17) of a clip -> probabilities (N, 9) of the classes EVENTS."""
        x = self.normalised(states)[:, :len(STATE)].T[None]
        return self.event_net(x)[0].softmax(0).T

    def vocalisation(self, states: Tensor) -> str:
        """"speech" or one of KINDS: what most of the clip's judged frames show, silence aside."""
        return EVENTS[1 + self.events(states)[:, 1:].sum(0).argmax()]

    @torch.inference_mode()
    def lips(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Judged states (N, 17) of a clip -> probabilities (N, classes) of VISEME_CLASSES, and the
        lip reader's features (N, 64), whose cosine similarity is the LipScore."""
        features = self.lip_net[:-1](self.normalised(states)[:, :MOUTH].T[None])      # (1, 64, N)
        return self.lip_net[-1](features)[0].softmax(0).T, features[0].T


def at_size(frames: Tensor) -> Tensor:
    return frames if frames.shape[-1] == SIZE else F.interpolate(frames, (SIZE, SIZE), mode="area")


def lip_limits(states: list[np.ndarray], clips: list[Clip]) -> dict[str, float]:
    """Where the judged jaw counts as closed, and as open: as in 95 % of the drawn frames of m, b, p
    and of open vowels. `states` (N, 17) are what is judged of each drawn clip."""
    jaws = np.concatenate([judged[:, JUDGED.index("jaw")] for judged in states])
    visemes = np.array(VISEME_CLASSES)[np.concatenate([c.viseme for c in clips])]
    return {"closed below": float(np.quantile(jaws[visemes == "m b p"], 0.95)),
            "open above": float(np.quantile(jaws[visemes == "ah"], 0.05))}


def load_vae(folder: Path) -> VAE:
    """The autoencoder that toy.train_vae wrote there, in the memory layout that is fastest here."""
    path = folder / "vae.safetensors"
    vae = VAE(header_config(VAEConfig, path)).eval()
    load_part(path, vae)
    return vae.to(memory_format=torch.channels_last)


@torch.inference_mode()
def are_drawn(weights: Path, pictures: Tensor) -> bool:
    """Whether most of the pictures (n, 3, H, W) are faces of this world, by what the autoencoder
    in that folder makes of them: such as the judges can judge."""
    limit = header_number(weights / "vae.safetensors", "familiar_error")
    return bool(brightness_error(load_vae(weights), at_size(pictures)).median() <= limit)


@torch.inference_mode()
def closed_lips(judges: Judges, clips: int = 6) -> float:
    """The judged jaw below which lips count as closed; see `lip_limits`."""
    made = [make_clip(TEST + i, "test", 4.0, "speech") for i in range(clips)]
    states = [judges.states(frames(c, np.arange(len(c.state)), SIZE)).numpy() for c in made]
    return lip_limits(states, made)["closed below"]


@torch.inference_mode()
def through(vae: VAE, frames: Tensor) -> Tensor:
    """Frames after the autoencoder."""
    return torch.cat([vae.to_images(vae.to_latents(f)) for f in frames.split(32)])


# ---- What they learn from: uint8 pictures, half of them after the autoencoder ----

@dataclass
class Lessons:
    """frames (I, 4, 3, 64, 64) of I people, with truth (I, 4, 17); truth of whole clips
    (K, N, 17), with their visemes and events (K, N)."""

    frames: Tensor
    truth: Tensor
    clips: Tensor
    visemes: Tensor
    events: Tensor


def to_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().byte()


def from_bytes(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def to_tensor(video: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) in [-1, 1]."""
    return from_bytes(torch.tensor(video).movedim(-1, -3))


def truth(clip: Clip) -> Tensor:
    """(N, 17): the columns of JUDGED."""
    return torch.from_numpy(np.concatenate([clip.state, clip.emotion], 1))


def prepare(vae: VAE, people: int, clips: int) -> Lessons:
    rng = np.random.default_rng(TRAIN)
    kinds = [(None, "speech", KINDS[i // 3 % len(KINDS)])[i % 3] for i in range(clips)]
    made = [make_clip(TRAIN + i, "train", 4.0, kind) for i, kind in enumerate(kinds)]
    every = torch.stack([truth(clip) for clip in made])                     # (K, N, 17)
    frame = torch.from_numpy(rng.integers(0, every.shape[0] * every.shape[1], (people, 4)))
    chosen = every.flatten(0, 1)[frame]                                     # (I, 4, 17)
    faces = torch.empty(people, 4, 3, SIZE, SIZE, dtype=torch.uint8)
    for some_faces, states in zip(faces.split(16), chosen[..., :len(STATE)].split(16)):
        identity = np.stack([random_identity(rng) for _ in states]).repeat(4, axis=0)
        images = draw(torch.from_numpy(identity), states.flatten(0, 1), SIZE)
        images = images.unflatten(0, (-1, 4))                               # (16, 4, 3, h, w)
        some_faces[:, :2] = to_bytes(images[:, :2])
        decoded = through(vae, images[:, 2:].flatten(0, 1))
        some_faces[:, 2:] = to_bytes(decoded).unflatten(0, (-1, 2))
    return Lessons(faces, chosen, every, torch.from_numpy(np.stack([c.viseme for c in made])),
                   torch.from_numpy(np.stack([c.event for c in made])))


def some(n: int, of: int) -> Tensor:
    return torch.randint(of, (n,))


def varied(images: Tensor) -> Tensor:
    """Other brightness and contrast, and noise, so that small faults of a picture do not matter."""
    gain, bias = torch.randn(2, len(images), 1, 1, 1) * .05
    return images * (1 + gain) + bias + .03 * torch.randn_like(images)


def state_loss(judges: Judges, lessons: Lessons) -> Tensor:
    i, j = some(64, len(lessons.frames)), some(64, 4)
    target = judges.normalised(lessons.truth[i, j])
    judged = judges.state_trunk(varied(from_bytes(lessons.frames[i, j])))
    return F.smooth_l1_loss(judged, target, beta=.3)


def face_loss(judges: Judges, lessons: Lessons) -> Tensor:
    """Two frames of each of 48 people: each must find its partner."""
    i = torch.randperm(len(lessons.frames))[:48]
    pair = torch.rand(48, 4).argsort(1)[:, :2]
    images = from_bytes(lessons.frames[i[:, None], pair]).flatten(0, 1)
    a, b = F.normalize(judges.face_trunk(images), dim=1).unflatten(0, (48, 2)).unbind(1)
    logits, own = a @ b.T / .07, torch.arange(48)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def time_loss(judges: Judges, net: nn.Module, columns: int, lessons: Lessons, labels: Tensor,
              error: Tensor) -> Tensor:
    """For `labels` (K, N) from true states with the regressor's `error` (17,), half of it constant
    over a clip. Rare classes count more."""
    i = some(16, len(lessons.clips))
    x = lessons.clips[i]                                                    # (B, N, 17)
    x = x + .7 * error * (torch.randn_like(x) + torch.randn_like(x[:, :1]))
    logits = net(judges.normalised(x)[..., :columns].transpose(1, 2))       # (B, classes, N)
    frequency = labels.flatten().bincount(minlength=logits.shape[1]).float()
    return F.cross_entropy(logits, labels[i], frequency.clamp(min=1) ** -.5)


def fit(name: str, parts: list[nn.Module], loss: Callable[[], Tensor], seconds: float) -> None:
    optimizer = torch.optim.AdamW(nn.ModuleList(parts).parameters(), weight_decay=1e-3)
    start, step, running = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * math.cos(progress * math.pi / 2) ** 2
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step += 1
        running += (value.item() - running) * max(.02, 1 / step)
    print(f"{name}: {step} steps, loss {running:.3f}", flush=True)


def train(judges: Judges, lessons: Lessons, seconds: float) -> None:
    flat = lessons.truth.flatten(0, 1)
    judges.mean, judges.std = flat.mean(0), flat.std(0)
    fit("states", [judges.state_trunk], lambda: state_loss(judges, lessons), .6 * seconds)
    fit("identity", [judges.face_trunk], lambda: face_loss(judges, lessons), .2 * seconds)
    error = judges.states(from_bytes(lessons.frames[:200].flatten(0, 1))) - flat[:800]
    error = error.square().mean(0).sqrt()
    fit("lips", [judges.lip_net], lambda: time_loss(
        judges, judges.lip_net, MOUTH, lessons, lessons.visemes, error), .1 * seconds)
    fit("events", [judges.event_net], lambda: time_loss(
        judges, judges.event_net, len(STATE), lessons, lessons.events, error), .1 * seconds)


# ---- Their own error, on people, voices and sentences they never met ----

def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def measure(judges: Judges, vae: VAE, speech: int, each: int) -> dict[str, dict[str, float]]:
    """Figures on 3 s clips of the test split: `speech` of speech, `each` of each vocalisation."""
    kinds = ["speech"] * speech + list(KINDS) * each
    clips = [make_clip(TEST + i, "test", 3.0, kind) for i, kind in enumerate(kinds)]
    drawn = [frames(c, np.arange(len(c.state)), SIZE) for c in clips]
    visemes = torch.cat([torch.from_numpy(c.viseme) for c in clips[:speech]])
    true = torch.cat([truth(c) for c in clips[:speech]])
    gallery = judges.identity(torch.cat([d[:1] for d in drawn]))
    report = {}
    for name, videos in zip(BOTH, (drawn, [through(vae, d) for d in drawn])):
        states = [judges.states(video) for video in videos]
        found = [judges.vocalisation(s) for s in states]
        right = [f == k for f, k in zip(found, kinds)]
        named = torch.cat([judges.lips(s)[0].argmax(1) for s in states[:speech]]) == visemes
        probes = torch.cat([judges.identity(video[-1:]) for video in videos])
        judged = torch.cat(states[:speech])
        pairs = list(zip(JUDGED, judged.T, true.T))
        report[name] = {f"{column} r": correlation(a, b) for column, a, b in pairs}
        report[name] |= {f"{column} rmse": F.mse_loss(a, b).sqrt().item() for column, a, b in pairs}
        nearest = (probes @ gallery.T).argmax(1)
        report[name] |= {
            "right face": (nearest == torch.arange(len(clips))).float().mean().item(),
            "vocalisation accuracy": sum(right[speech:]) / (len(kinds) - speech),
            "speech taken for one": 1 - sum(right[:speech]) / speech,
            "viseme accuracy": named.float().mean().item(),
            "viseme accuracy, no silence": named[visemes > 0].float().mean().item()}
    return report


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m toy.evaluation.judges", description="Trains the judges.")
    parser.add_argument("--minutes", type=number(float, 0.01, 1e5), default=8,
                        help="after about 3.5 of drawing")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="has vae.safetensors")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    vae, judges, start = load_vae(args.out), Judges(), time.monotonic()
    lessons = prepare(vae, people=4000, clips=600)
    print(f"{4 * len(lessons.frames)} faces, {len(lessons.clips)} clips:"
          f" {time.monotonic() - start:.0f} s", flush=True)
    train(judges, lessons, 60 * args.minutes)
    judges.eval()
    report = measure(judges, vae, speech=40, each=6)
    save_part(args.out / "judges.safetensors", judges.state_dict(), report=report)
    print(f"{'':28} " + " ".join(f"{name:>8}" for name in BOTH))
    for key in report["drawn"]:
        print(f"{key:28} " + " ".join(f"{report[name][key]:8.3f}" for name in BOTH))


if __name__ == "__main__":
    sys.exit(run(main))
