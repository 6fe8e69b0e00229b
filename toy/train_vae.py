"""Trains the tiny autoencoder on drawn faces: `python -m toy.train_vae`.

Every batch is drawn anew: other people, in states that are independent of each other, so that the
latents hold a shut eye or a rounded mouth whatever the rest of the face does. Writes
`vae.safetensors` (fp16; in its header the config with the latents' mean and standard deviation,
and the error beyond which a picture is not familiar), config.json, and `vae.state` for --resume.
Several processes share each batch: `torchrun --nproc_per_node 2 -m toy.train_vae`.

`--data DIR` takes frames of the videos in a folder in place of drawings, for those who have no
autoencoder that knows photographs: every third frame, as neighbours are alike, mirrored at random.
--out becomes a weights folder then, with the shipped audio encoders, which python data.py can use.
"""

import math
import shutil
import sys
import time
from argparse import Namespace
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage import Config
from tools import prepare
from tools.checkpoint import code_version, load_state, save_config, save_part, save_state
from tools.cli import (
    WEIGHTS,
    InputError,
    Parser,
    make_folder,
    number,
    remember_signals,
    replacing,
    run,
    warn,
)
from tools.muon import Muon
from tools.processes import Processes
from toy.faces import STATE, draw, random_identity
from vae import VAE, VAEConfig, brightness_error

LR, WARM_UP, BATCH, KL = 1e-3, 240, 4, 2e-4
AT_MOUTH, AT_EYES = 3.0, 3.0  # how much more errors weigh there
REPORT_EVERY, SAVE_EVERY = 120, 300  # seconds
HELD_OUT = 10_000_000         # seeds about here are people who never occur in training


def random_states(rng: np.random.Generator, n: int) -> np.ndarray:
    """States (n, S) float32, each part often at its extremes and independent of the others
    (but teeth on the lip keep the jaw up)."""
    def some(share: float, values: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
        return np.where(rng.random(n) < share, values, otherwise)

    bite = some(.12, rng.uniform(.4, 1, n))
    s = {"jaw": some(.75, rng.beta(1, 1.5, n)) * (1 - .8 * bite), "bite": bite,
         "width": rng.normal(.5, .25, n).clip(0, 1), "rounding": some(.4, rng.uniform(0, 1, n)),
         "tongue": some(.25, rng.uniform(0, 1, n)), "smile": rng.uniform(-1, 1, n),
         "brow_height": rng.uniform(-1, 1, n), "brow_slope": rng.uniform(-1, 1, n),
         "eye_open": np.where(rng.random(n) < .2, rng.uniform(0, .4, n),
                              rng.normal(.7, .25, n).clip(0, 1.2)),
         "cheek": some(.4, rng.uniform(0, 1, n))}
    for name in ("gaze_x", "gaze_y", "head_x", "head_y", "tilt"):
        s[name] = rng.normal(0, .45, n).clip(-1, 1)
    return np.stack([s[name] for name in STATE], 1).astype(np.float32)


def random_faces(rng: np.random.Generator, n: int, size: int, rows: slice = slice(None)) -> Tensor:
    """n pictures (n, 3, size, size), each of another person, or some rows of them."""
    people = np.stack([random_identity(rng) for _ in range(n)])
    states = random_states(rng, n)
    return draw(torch.from_numpy(people[rows]), torch.from_numpy(states[rows]), size)


def mouth(images: Tensor) -> Tensor:
    """A view of the mouth's region, with room for every position of the head."""
    h = images.shape[-1]
    return images[..., round(.56 * h):round(.94 * h), round(.25 * h):round(.75 * h)]


def eyes(images: Tensor) -> Tensor:
    """The same of the eyes."""
    h = images.shape[-1]
    return images[..., round(.30 * h):round(.58 * h), round(.18 * h):round(.82 * h)]


class Objective(nn.Module):
    """What the autoencoder is trained for: a module, so that several processes can share it."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """The loss of pictures x (n, 3, H, W), their latents sampled with unit normal noise: errors
        of the pictures that come back, + KL times the distance of the latents' Gaussians to
        N(0, 1), which is kept so small that it only bounds the latents."""
        posterior = self.vae.encode(x)
        mean, logvar = posterior.mean, posterior.logvar
        kl = .5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return reconstruction_loss(self.vae.decode(posterior.sample(noise)), x) + KL * kl


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 L2, more at mouth and eyes, + 0.5 L1 of differences of neighbours."""
    weight = torch.ones(x.shape[-2:], device=x.device)
    eyes(weight).fill_(AT_EYES)
    mouth(weight).fill_(AT_MOUTH)
    error = y - x
    loss = ((error.abs() + 2 * error.square()) * weight).mean() / weight.mean()
    return loss + .5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def psnr(x: Tensor, y: Tensor) -> float:
    return 10 * math.log10(4 / F.mse_loss(x, y).item())


@torch.no_grad()
def evaluate(vae: VAE, images: Tensor) -> list[float]:
    """PSNR in dB of whole pictures, of their mouths and of their eyes."""
    images = images.to(next(vae.parameters()))
    decoded = vae.to_images(vae.to_latents(images))
    return [psnr(part(decoded), part(images)) for part in (lambda x: x, mouth, eyes)]


@torch.no_grad()
def normalised(vae: VAE, images: Tensor) -> VAEConfig:
    """The config with each latent channel's mean and standard deviation over `images`."""
    z = vae.encode(images.to(next(vae.parameters()))).mean
    return replace(vae.config, latent_mean=tuple(z.mean((0, 2, 3)).tolist()),
                   latent_std=tuple(z.std((0, 2, 3)).tolist()))


class DrawnFaces:
    """Drawings to learn from, and of people who never occur in training: to be measured on, to take
    the latents' statistics from, and 500 familiar ones that are drawn larger and made smaller, as a
    user's picture is, which costs the autoencoder more. All (n, 3, size, size)."""

    def __init__(self, size: int):
        self.size = size
        self.held_out = random_faces(np.random.default_rng(HELD_OUT), 128, size)
        self.measured = random_faces(np.random.default_rng(HELD_OUT - 1), 256, size)

    def batch(self, step: int, rows: slice = slice(None)) -> Tensor:
        return random_faces(np.random.default_rng(step), BATCH, self.size, rows)

    @cached_property
    def familiar(self) -> Tensor:
        return torch.cat([F.interpolate(random_faces(np.random.default_rng(HELD_OUT - 2 - i), 1,
                                                     4 * self.size), (self.size, self.size),
                                        mode="area") for i in range(500)])


class FilmedFaces:
    """The same of the videos in a folder, of which every tenth is held out, to be measured on; the
    latents' statistics are those of pictures to learn from, and all of these are the familiar ones.
    Raises InputError where there are none to learn from, or none to be measured on."""

    def __init__(self, size: int, videos: prepare.Videos):
        self.size = size
        kept: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for i in range(len(videos)):
            try:
                kept[videos.held_out(i)] += [piece.pictures[::3].copy()  # the others may go
                                             for piece in videos.pieces(i)]
            except InputError as error:
                warn(f"left out: {error}")
        if not kept[True] or not kept[False]:
            raise InputError(f"--data {videos.folder}: nothing is left to "
                             f"{'be measured on' if kept[False] else 'learn from'}; mend what is "
                             "left out, or give more videos")
        self.pictures = np.concatenate(kept[False])  # (n, H, W, 3) uint8
        test = np.concatenate(kept[True])
        self.held_out = self._images(test[np.linspace(0, len(test) - 1, 128).astype(int)])
        self.measured = self._random(np.random.default_rng(HELD_OUT), 256)
        self.familiar = torch.cat([self.held_out, self.measured])

    def _images(self, pictures: np.ndarray) -> Tensor:
        return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1

    def _random(self, rng: np.random.Generator, n: int) -> Tensor:
        images = self._images(self.pictures[rng.integers(len(self.pictures), size=n)])
        return torch.where(torch.from_numpy(rng.random(n) < .5)[:, None, None, None],
                           images.flip(-1), images)

    def batch(self, step: int, rows: slice = slice(None)) -> Tensor:
        return self._random(np.random.default_rng(step), BATCH)[rows]


@torch.no_grad()
def familiar_error(vae: VAE, images: Tensor) -> float:
    """The largest `brightness_error` of a familiar picture: 1.3 times what 99 of 100 of `images`
    stay below. (The largest of all is one picture's, and much larger in some samples.)"""
    parts = images.to(next(vae.parameters())).split(25)
    return 1.3 * torch.cat([brightness_error(vae, part) for part in parts]).quantile(0.99).item()


def save(out: Path, vae: VAE, faces: DrawnFaces | FilmedFaces, done: bool, **state: object
         ) -> VAEConfig:
    """Writes the weights, with their latents' statistics, and `vae.state`. Returns the config. How
    familiar a picture must be is measured when all is done, because it takes half a minute."""
    config = normalised(vae, faces.measured)
    figures = dict(zip(("dB", "mouth dB", "eyes dB"), evaluate(vae, faces.held_out)))
    familiar = {"familiar_error": familiar_error(vae, faces.familiar)} if done else {}
    save_part(out / "vae.safetensors", vae.state_dict(), config=asdict(config), step=state["step"],
              figures=figures, version=code_version(), **familiar)
    save_config(replace(Config.tiny(faces.size), vae=config), out)
    save_state(out / "vae.state", {"vae": vae.state_dict(), **state})
    return config


def train(args: Namespace, faces: DrawnFaces | FilmedFaces, processes: Processes,
          state: dict | None) -> None:
    """Trains for args.steps, or goes on with the state of a training, and writes to args.out."""
    torch.manual_seed(0)
    vae = VAE(VAEConfig.tiny(faces.size)).to(processes.device, memory_format=torch.channels_last)
    optimizer = Muon(vae, LR, ("conv_in", "conv_out"))
    step, before = 0, 0.0  # done in earlier runs: steps, and their seconds
    if state:
        try:
            vae.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
            step, before = state["step"], state["seconds"]
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise InputError(f"--resume: {args.out / 'vae.state'} is of another --size, or of an "
                             "earlier version") from None
    objective = processes.parallel(Objective(vae), some_unused=False)
    first, rows, signals = processes.rank == 0, processes.rows(BATCH), remember_signals()
    start = reported = saved = time.monotonic()
    steps_then, running, stopped = step, 0.0, False
    while step < args.steps and not stopped:
        # Half a cosine down to 1 %, after a warm-up.
        decay = .01 + .99 * math.cos(step / args.steps * math.pi / 2) ** 2
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARM_UP) * decay

        # Pictures and noise follow from the number of the step, whatever the number of processes.
        x = faces.batch(step, rows).to(processes.device)
        side = x.shape[-1] // vae.config.patch // 2 ** (len(vae.config.ch_mult) - 1)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(BATCH, vae.config.z_channels, side, side, generator=generator)
        loss = objective(x, noise[rows].to(x))
        vae.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1

        running += (loss.item() - running) * max(.004, 1 / (step - steps_then))
        [stopped] = processes.agree([float(bool(signals))])
        done, now = step == args.steps or stopped, time.monotonic()
        seconds = before + now - start
        if first and (now - reported > REPORT_EVERY or done):
            whole, at_mouth, at_eyes = evaluate(vae, faces.held_out)
            print(f"{seconds / 60:5.1f} min  step {step}  loss {running:.4f}  {whole:.2f} dB"
                  f"  mouth {at_mouth:.2f} dB  eyes {at_eyes:.2f} dB"
                  f"  {(step - steps_then) / (now - start):.2f} steps/s", flush=True)
            reported = now
        if first and (now - saved > SAVE_EVERY or done):
            config = save(args.out, vae, faces, step == args.steps, step=step, seconds=seconds,
                          optimizer=optimizer.state_dict())
            saved = now
    if first and args.steps > steps_then:
        for name, values in (("mean", config.latent_mean), ("std", config.latent_std)):
            print(f"latents' {name} {[round(v, 2) for v in values]}")
    processes.leave()


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=number(int, 1, 10**9), default=9000,
                        help=f"in all, of {BATCH} pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="weights folder")
    parser.add_argument("--size", type=int, choices=(64, 128), default=64,
                        help="side of the pictures")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="folder of videos to take frames from; without it, faces are drawn")
    prepare.add_video_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue what --out holds")
    args = parser.parse_args(argv)
    if (args.crop or args.speakers) and not args.data:
        parser.error("--crop and --speakers are for videos; name their folder with --data")
    processes = Processes.join()
    state = load_state(args.out / "vae.state") if args.resume else None
    make_folder(args.out)
    faces = (FilmedFaces(args.size, prepare.Videos(args.data, args.size, args.crop, args.speakers))
             if args.data else DrawnFaces(args.size))
    for name in ("wavlm.safetensors", "beats.safetensors") if args.data else ():
        if processes.rank == 0 and not (args.out / name).exists():
            with replacing(args.out / name) as temporary:
                shutil.copyfile(WEIGHTS / name, temporary)
    train(args, faces, processes, state)


if __name__ == "__main__":
    sys.exit(run(main))
