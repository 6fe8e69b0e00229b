"""The judges of the toy world: small networks that measure from pixels alone what the world knows.

Five of them: *states* (the 15 numbers of a face, valence and arousal), *identity* (an embedding),
*eyes* (how far a single eye is open, and the colour of its iris), and from the judged states over
time *events* (speech or which vocalisation) and *lips* (a lip reader that names visemes). The first
three learn from drawn frames and from others after the autoencoder, else they misread generated
ones; the others from true states with the first one's error. All see the train split alone.
`python -m toy.evaluation.judges`, after toy.train_vae, writes `judges.safetensors` and prints each
one's own error on the test split, drawn and after the autoencoder: the ceiling of every model that
uses it.
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

from stage import Config
from tools.checkpoint import (
    code_version,
    header_config,
    header_number,
    load_config,
    load_part,
    save_part,
)
from tools.cli import Parser, number, run
from toy.faces import (
    STATE,
    TRAITS,
    ZOOM,
    colours,
    draw,
    elsewhere,
    in_picture,
    random_identity,
)
from toy.voices import VISEME_CLASSES
from toy.world import EVENTS, KINDS, Clip, frames, make_clip
from vae import VAE, VAEConfig, brightness_error

JUDGED = (*STATE, "valence", "arousal")
SIZE = 64                     # side of the pictures that the judges look at, but for eyes
EYE, EYE_SIZE = 32, 128       # side of an eye's crop, and of the picture that it is a part of
JAW, EYE_OPEN = STATE.index("jaw"), STATE.index("eye_open")  # in states and in JUDGED
IRIS_SEEN = .3                # of an eye's opening, from where the colour of its iris is to be told
MOUTH = 6                     # the first columns of JUDGED, which the lip reader sees
TRAIN, TEST = 50_000_000, 60_000_000      # first seeds of their clips, in either split
BOTH = ("drawn", "decoded")
# Steps of each network's training; how many people and clips they learn from.
STEPS = {"states": 3000, "identity": 250, "eyes": 1500, "lips": 2000, "events": 1500}
PEOPLE, CLIPS = 2000, 600
FIGURES = ("jaw r", "right face", "vocalisation accuracy", "viseme accuracy", "an eye rmse",
           "iris, CIELAB distance")            # that stand in the weights' card


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


def of_an_eye() -> nn.Sequential:
    """Crops (N, 3, EYE, EYE) -> (N, 4). Without norms, as what matters is the colour itself."""
    layers = []
    for c_in, c, kernel in ((3, 24, 5), (24, 32, 3), (32, 48, 3)):
        layers += [nn.Conv2d(c_in, c, kernel, stride=2, padding=kernel // 2), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * (EYE // 8) ** 2, 96), nn.SiLU(),
                         nn.Linear(96, 4))


class Judges(nn.Module):
    """All five. Frames are (N, 3, H, W) in [-1, 1], of any size, in order where time matters."""

    def __init__(self):
        super().__init__()
        self.state_trunk = nn.Sequential(trunk(160), nn.SiLU(), nn.Linear(160, len(JUDGED)))
        self.register_buffer("mean", torch.zeros(len(JUDGED)))
        self.register_buffer("std", torch.ones(len(JUDGED)))
        self.face_trunk = trunk(64)
        self.event_net = over_time(len(STATE), 48, len(EVENTS), kernel=9, depth=3)
        self.lip_net = over_time(MOUTH, 64, len(VISEME_CLASSES), kernel=5, depth=3)
        self.eye_net = of_an_eye()
        self.register_buffer("eye_mean", torch.zeros(4))
        self.register_buffer("eye_std", torch.ones(4))

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
    def eyes(self, frames: Tensor, states: Tensor) -> Tensor:
        """(N, 2, 4): of the left and of the right eye in the picture how far it is open, as in a
        state, and its iris in CIELAB, which means nothing where the eye is shut. `states` (N, 17)
        are judged, too: they tell where the eyes are."""
        judged = self.eye_net(eye_crops(frames, states).flatten(0, 1)) * self.eye_std
        return (judged + self.eye_mean).unflatten(0, (-1, 2))

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
    def over_clips(self, states: Tensor) -> Tensor:
        """Judged states (N, 17) -> (N // 16, 112): what the two networks that look along time see
        in each clip of 16 frames, for distances between sets of clips."""
        x = self.normalised(states).T[None]
        seen = [self.event_net[:-1](x[:, :len(STATE)]), self.lip_net[:-1](x[:, :MOUTH])]
        return F.avg_pool1d(torch.cat(seen, 1), 16)[0].T if x.shape[2] >= 16 else (
            x.new_empty(0, sum(part.shape[1] for part in seen)))

    @torch.inference_mode()
    def events(self, states: Tensor) -> Tensor:
        """Judged states (N, 17) of a clip -> probabilities (N, 9) of the classes EVENTS."""
        x = self.normalised(states)[:, :len(STATE)].T[None]
        return self.event_net(x)[0].softmax(0).T

    def vocalisation(self, states: Tensor) -> str:
        """"speech" or one of KINDS: the most probable over all frames, silence aside."""
        return EVENTS[1 + self.events(states)[:, 1:].sum(0).argmax()]

    @torch.inference_mode()
    def lips(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Judged states (N, 17) of a clip -> probabilities (N, classes) of VISEME_CLASSES, and the
        lip reader's features (N, 64), whose cosine similarity is the LipScore."""
        features = self.lip_net[:-1](self.normalised(states)[:, :MOUTH].T[None])      # (1, 64, N)
        return self.lip_net[-1](features)[0].softmax(0).T, features[0].T


def at_size(frames: Tensor, size: int = SIZE) -> Tensor:
    """Made smaller by averages of pixels, larger by lines between them."""
    if frames.shape[-1] == size:
        return frames
    return F.interpolate(frames, (size, size),
                         mode="area" if frames.shape[-1] > size else "bilinear")


def eye_crops(frames: Tensor, states: Tensor) -> Tensor:
    """Frames (N, 3, H, W) in states (N, 15 or more) -> (N, 2, 3, EYE, EYE): the left eye, and the
    right one mirrored, so that one network serves both. The crops follow the head and turn with it,
    at the scale of a picture EYE_SIZE wide."""
    line = (torch.arange(EYE) + .5 - EYE / 2) * 2 / EYE_SIZE / ZOOM
    side = torch.tensor([-1., 1.])[:, None, None]
    fx, fy = side * (.275 - line), (line[:, None] - .10).expand(2, EYE, EYE)     # (2, h, w)
    grid = in_picture(fx.expand_as(fy), fy, states[:, :len(STATE)])             # (N, 2, h, w, 2)
    frames = at_size(frames, min(EYE_SIZE, frames.shape[-1]))
    crops = F.grid_sample(frames, grid.flatten(1, 2), align_corners=False)      # (N, 3, 2 h, w)
    return crops.unflatten(2, (2, EYE)).transpose(1, 2)


def lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in 0 to 1 -> CIELAB (..., 3) under D65 (CIE 15 and IEC 61966-2-1): lightness
    0 to 100, green to red, blue to yellow. Distances are about as large as they look, 1 just
    visible."""
    linear = torch.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750],
                           [.0193339, .1191920, .9503041]])
    xyz = linear @ to_xyz.T / torch.tensor([.95047, 1, 1.08883])
    x, y, z = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3),
                          xyz / (3 * (6 / 29) ** 2) + 4 / 29).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def iris(identity: Tensor) -> Tensor:
    """The colour (N, 3) in CIELAB that faces of identity (N, D) are drawn with."""
    return lab(colours(dict(zip(TRAITS, identity.unbind(1)))).iris)


def load_vae(folder: Path) -> VAE:
    """The autoencoder that toy.train_vae wrote there, in the memory layout that is fastest here."""
    path = folder / "vae.safetensors"
    vae = VAE(header_config(VAEConfig, path)).eval()
    load_part(path, vae)
    return vae.to(memory_format=torch.channels_last)


@torch.inference_mode()
def are_drawn(weights: Path, pictures: Tensor) -> bool:
    """Whether most of the pictures (n, 3, H, W), of the size of the weights in that folder, are
    faces of this world, by what its autoencoder makes of them: such as the judges can judge."""
    limit = header_number(weights / "vae.safetensors", "familiar_error")
    return bool(brightness_error(load_vae(weights), pictures).median() <= limit)


@torch.inference_mode()
def lip_limits(judges: Judges, size: int) -> dict[str, float]:
    """Where the judged jaw counts as closed, and as open: as in 95 % of the frames of m, b, p and
    of open vowels of 16 clips of the test split, drawn `size` pixels wide."""
    made = [make_clip(TEST + i, "test", 4.0, "speech") for i in range(16)]
    jaws = torch.cat([judges.states(frames(c, np.arange(len(c.state)), size))[:, JAW]
                      for c in made])
    visemes = np.array(VISEME_CLASSES)[np.concatenate([c.viseme for c in made])]
    return {"closed below": jaws[visemes == "m b p"].quantile(.95).item(),
            "open above": jaws[visemes == "ah"].quantile(.05).item()}


@torch.inference_mode()
def through(vae: VAE, frames: Tensor) -> Tensor:
    """Frames after the autoencoder."""
    return torch.cat([vae.to_images(vae.to_latents(f)) for f in frames.split(32)])


# ---- What they learn from: uint8 pictures, half of them after the autoencoder ----

@dataclass
class Lessons:
    """frames (I, 4, 3, 64, 64) of I people, with truth (I, 4, 17); their eyes (I, 4, 2, 3, 32, 32)
    with theirs (I, 4, 2, 4); truth of whole clips (K, N, 17), with their visemes and events
    (K, N)."""

    frames: Tensor
    truth: Tensor
    eyes: Tensor
    eye_truth: Tensor
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


def unequal_eyes(n: int) -> Tensor:
    """How far the left and the right eye are open, which has nothing to do with each other or with
    the rest of the face: (n, 2)."""
    return 1.2 * torch.rand(n, 2) * (torch.rand(n, 2) > .15)


def faces(vae: VAE, size: int, identity: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Faces of people (I, D) in states (I, 4, 17) -> pictures (I, 4, 3, size, size), the last two
    of each person after the autoencoder; the states with the mean of both eyes; truth of the eyes
    (I, 4, 2, 4). Every other picture has unequal eyes. Background and clothes differ from picture
    to picture, so that nobody is known by them."""
    opening = states[..., EYE_OPEN, None].repeat(1, 1, 2)                   # (I, 4, 2)
    opening[:, ::2] = unequal_eyes(2 * len(states)).unflatten(0, (-1, 2))
    drawn, states = states.clone(), states.clone()
    drawn[..., EYE_OPEN], states[..., EYE_OPEN] = opening[..., 0], opening.mean(-1)
    images = draw(elsewhere(identity.repeat_interleave(4, 0)),
                  drawn[..., :len(STATE)].flatten(0, 1), size,
                  opening[..., 1].flatten()).unflatten(0, (-1, 4))          # (I, 4, 3, h, w)
    images[:, 2:] = through(vae, images[:, 2:].flatten(0, 1)).unflatten(0, (-1, 2))
    colour = iris(identity)[:, None, None].expand(*opening.shape, 3)
    return images, states, torch.cat([opening[..., None], colour], -1)


def prepare(vae: VAE, size: int, people: int, clips: int) -> Lessons:
    rng = np.random.default_rng(TRAIN)
    kinds = [(None, "speech", KINDS[i // 3 % len(KINDS)])[i % 3] for i in range(clips)]
    made = [make_clip(TRAIN + i, "train", 4.0, kind) for i, kind in enumerate(kinds)]
    every = torch.stack([truth(clip) for clip in made])                     # (K, N, 17)
    frame = torch.from_numpy(rng.integers(0, every.shape[0] * every.shape[1], (people, 4)))
    lessons = []
    for states in every.flatten(0, 1)[frame].split(16):                     # (16, 4, 17)
        identity = torch.from_numpy(np.stack([random_identity(rng) for _ in states]))
        images, states, eyes = faces(vae, size, identity, states)
        found = states.flatten(0, 1)              # of the head, the judge will be wrong by so much
        crops = eye_crops(images.flatten(0, 1), found + .04 * torch.randn_like(found))
        small = at_size(images.flatten(0, 1)).unflatten(0, (-1, 4))
        lessons.append((to_bytes(small), states, to_bytes(crops).unflatten(0, (-1, 4)), eyes))
    return Lessons(*map(torch.cat, zip(*lessons)), every,
                   torch.from_numpy(np.stack([c.viseme for c in made])),
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
    pair = torch.rand(len(i), 4).argsort(1)[:, :2]
    images = from_bytes(lessons.frames[i[:, None], pair]).flatten(0, 1)
    a, b = F.normalize(judges.face_trunk(images), dim=1).unflatten(0, (-1, 2)).unbind(1)
    logits, own = a @ b.T / .07, torch.arange(len(i))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def eye_loss(judges: Judges, lessons: Lessons) -> Tensor:
    """Single eyes; the iris counts where it is to be seen."""
    i, j, side = some(128, len(lessons.eyes)), some(128, 4), some(128, 2)
    truth, crops = lessons.eye_truth[i, j, side], from_bytes(lessons.eyes[i, j, side])
    judged = judges.eye_net(crops + .03 * torch.randn_like(crops))
    error = F.smooth_l1_loss(judged, (truth - judges.eye_mean) / judges.eye_std, beta=.1,
                             reduction="none")
    return error[:, 0].mean() + error[truth[:, 0] > IRIS_SEEN, 1:].mean()


def time_loss(judges: Judges, net: nn.Module, columns: int, lessons: Lessons, labels: Tensor,
              error: Tensor) -> Tensor:
    """For `labels` (K, N) from true states with the judge's `error` (17,), half of it constant
    over a clip. Rare classes count more."""
    i = some(16, len(lessons.clips))
    x = lessons.clips[i]                                                    # (B, N, 17)
    x = x + .7 * error * (torch.randn_like(x) + torch.randn_like(x[:, :1]))
    logits = net(judges.normalised(x)[..., :columns].transpose(1, 2))       # (B, classes, N)
    frequency = labels.flatten().bincount(minlength=logits.shape[1]).float()
    return F.cross_entropy(logits, labels[i], frequency.clamp(min=1) ** -.5)


def fit(name: str, parts: list[nn.Module], loss: Callable[[], Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(nn.ModuleList(parts).parameters(), weight_decay=1e-3)
    start, running = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * math.cos(step / steps * math.pi / 2) ** 2
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        running += (value.item() - running) * max(.02, 1 / (step + 1))
    seconds = time.monotonic() - start
    print(f"{name}: {steps} steps, loss {running:.3f}, {seconds:.0f} s", flush=True)


def train(judges: Judges, lessons: Lessons, share: float) -> None:
    """Every network in turn, for that share of its STEPS."""
    steps = {name: max(1, round(share * count)) for name, count in STEPS.items()}
    flat, eyes = lessons.truth.flatten(0, 1), lessons.eye_truth.flatten(0, 2)
    # Of few lessons, what is rare may be all the same.
    judges.mean, judges.std = flat.mean(0), flat.std(0).clamp(min=.01)
    judges.eye_mean, judges.eye_std = eyes.mean(0), eyes.std(0)
    fit("states", [judges.state_trunk], lambda: state_loss(judges, lessons), steps["states"])
    fit("identity", [judges.face_trunk], lambda: face_loss(judges, lessons), steps["identity"])
    fit("eyes", [judges.eye_net], lambda: eye_loss(judges, lessons), steps["eyes"])
    error = judges.states(from_bytes(lessons.frames[:200].flatten(0, 1))) - flat[:800]
    error = error.square().mean(0).sqrt()
    fit("lips", [judges.lip_net], lambda: time_loss(
        judges, judges.lip_net, MOUTH, lessons, lessons.visemes, error), steps["lips"])
    fit("events", [judges.event_net], lambda: time_loss(
        judges, judges.event_net, len(STATE), lessons, lessons.events, error), steps["events"])


# ---- Their own error, on people, voices and sentences they never met ----

def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def measure_eyes(judges: Judges, vae: VAE, size: int, people: int) -> dict[str, dict[str, float]]:
    """Figures on unequal eyes of people who are in no clip, found by the judged pose."""
    rng = np.random.default_rng(TEST)
    identity = torch.from_numpy(np.stack([random_identity(rng) for _ in range(people)]))
    states = torch.cat([truth(make_clip(TEST + i, "test", 3.0)) for i in range(8)])
    states = states[torch.from_numpy(rng.integers(len(states), size=(people, 4)))]
    images, _, truths = faces(vae, size, identity, states)
    report = {}
    for name, pictures, true in zip(BOTH, images[:, ::2].unbind(1), truths[:, ::2].unbind(1)):
        judged = judges.eyes(pictures, judges.states(pictures))             # (I, 2, 4)
        seen = true[..., 0] > IRIS_SEEN
        colour = (judged - true)[..., 1:].norm(dim=-1)
        report[name] = {
            "an eye r": correlation(judged[..., 0], true[..., 0]),
            "an eye rmse": F.mse_loss(judged[..., 0], true[..., 0]).sqrt().item(),
            "left less right eye r": correlation(*(-x[..., 0].diff() for x in (judged, true))),
            "iris, CIELAB distance": colour[seen].mean().item()}
    return report


def measure(judges: Judges, vae: VAE, size: int, speech: int, each: int
            ) -> dict[str, dict[str, float]]:
    """Figures on 3 s clips of the test split: `speech` of speech, `each` of each vocalisation."""
    kinds = ["speech"] * speech + list(KINDS) * each
    clips = [make_clip(TEST + i, "test", 3.0, kind) for i, kind in enumerate(kinds)]
    states, probes, gallery = {name: [] for name in BOTH}, {name: [] for name in BOTH}, []
    for clip in clips:                      # one after the other, as all would not fit in memory
        drawn = frames(clip, np.arange(len(clip.state)), size)
        head = elsewhere(torch.from_numpy(clip.identity)[None])
        gallery.append(judges.identity(draw(head, torch.from_numpy(clip.state[:1]), size)))
        for name, video in zip(BOTH, (drawn, through(vae, drawn))):
            states[name].append(judges.states(video))
            probes[name].append(judges.identity(video[-1:]))
    visemes = torch.cat([torch.from_numpy(c.viseme) for c in clips[:speech]])
    true = torch.cat([truth(c) for c in clips[:speech]])
    report = {}
    for name in BOTH:
        right = [judges.vocalisation(s) == kind for s, kind in zip(states[name], kinds)]
        some_states = states[name][:speech]
        named = torch.cat([judges.lips(s)[0].argmax(1) for s in some_states]) == visemes
        pairs = list(zip(JUDGED, torch.cat(some_states).T, true.T))
        report[name] = {f"{column} r": correlation(a, b) for column, a, b in pairs}
        report[name] |= {f"{column} rmse": F.mse_loss(a, b).sqrt().item() for column, a, b in pairs}
        nearest = (torch.cat(probes[name]) @ torch.cat(gallery).T).argmax(1)
        report[name] |= {
            "right face": (nearest == torch.arange(len(clips))).float().mean().item(),
            "vocalisation accuracy": sum(right[speech:]) / (len(kinds) - speech),
            "speech taken for one": 1 - sum(right[:speech]) / speech,
            "viseme accuracy": named.float().mean().item(),
            "viseme accuracy, no silence": named[visemes > 0].float().mean().item()}
    return report


def main(argv: list[str] | None = None) -> None:
    whole = sum(STEPS.values())
    parser = Parser(prog="python -m toy.evaluation.judges", description="Trains the judges.")
    parser.add_argument("--steps", type=number(int, 1, 10**7), default=whole,
                        help="of all five together; with fewer than the default, people and "
                        "clips are fewer in proportion")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"),
                        help="weights folder, with vae.safetensors")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    vae, size = load_vae(args.out), load_config(Config, args.out).size
    judges, start, share = Judges(), time.monotonic(), args.steps / whole
    lessons = prepare(vae, size, *(max(50, round(min(1, share) * n)) for n in (PEOPLE, CLIPS)))
    print(f"{4 * len(lessons.frames)} faces, {len(lessons.clips)} clips:"
          f" {time.monotonic() - start:.0f} s", flush=True)
    train(judges, lessons, share)
    judges.eval().half().float()  # they are measured as they are kept
    report, eyes = measure(judges, vae, size, 14, 2), measure_eyes(judges, vae, size, 100)
    report = {name: report[name] | eyes[name] for name in BOTH}
    figures = {name: round(report["decoded"][name], 4) for name in FIGURES}
    save_part(args.out / "judges.safetensors", judges.state_dict(), report=report, figures=figures,
              step=args.steps, version=code_version())
    print(f"{'':28} " + " ".join(f"{name:>8}" for name in BOTH))
    for key in report["drawn"]:
        print(f"{key:28} " + " ".join(f"{report[name][key]:8.3f}" for name in BOTH))


if __name__ == "__main__":
    sys.exit(run(main))
