"""Trains the tiny autoencoder on drawn faces: `python -m toy.train_vae`, 22 minutes on one core.

Every batch is drawn anew: other people, in states that are independent of each other, so that the
latents hold a shut eye or a rounded mouth whatever the rest of the face does. Writes
`vae.safetensors` (fp16; in its header the config with the latents' mean and standard deviation,
and the error beyond which a picture is not familiar) and beside it `vae.state` for --resume.

`--data DIR` takes frames of the videos in a folder in place of drawings, for those who have no
autoencoder that knows photographs: every third frame, as neighbours are alike, mirrored at random.
--out becomes a weights folder then, with the shipped audio encoders, which python data.py can use.

`--decoder DIR` goes on with the decoder of DIR alone, with weight on the eyes, whose irises are
six pixels wide. The latents stay what they are, so that networks trained on them stay valid.
"""

import math
import shutil
import sys
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stage import Config
from tools import prepare
from tools.checkpoint import (
    header_config,
    load_part,
    load_state,
    save_config,
    save_part,
    save_state,
)
from tools.cli import WEIGHTS, InputError, Parser, make_folder, number, replacing, run, warn
from toy.faces import STATE, draw, random_identity
from vae import VAE, VAEConfig, brightness_error

LR, AGAIN_LR, WARM_UP, BATCH, KL = 2e-3, 1e-3, 200, 16, 2e-4
AT_MOUTH, AT_EYES = 3.0, 6.0  # how much more errors weigh there; at the eyes for the decoder alone
HELD_OUT = 10_000_000         # seeds from here on are people who never occur in training


def random_states(rng: np.random.Generator, n: int) -> np.ndarray:
    """States (n, S) float32, each part often at its extremes and independent of the others."""
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


def random_faces(rng: np.random.Generator, n: int, size: int) -> Tensor:
    """n pictures (n, 3, size, size), each of another person."""
    people = np.stack([random_identity(rng) for _ in range(n)])
    return draw(torch.from_numpy(people), torch.from_numpy(random_states(rng, n)), size)


def mouth(images: Tensor) -> Tensor:
    """A view of the mouth's region, with room for every position of the head."""
    h = images.shape[-1]
    return images[..., round(.56 * h):round(.94 * h), round(.25 * h):round(.75 * h)]


def eyes(images: Tensor) -> Tensor:
    """The same of the eyes."""
    h = images.shape[-1]
    return images[..., round(.30 * h):round(.58 * h), round(.18 * h):round(.82 * h)]


def reconstruction_loss(x: Tensor, y: Tensor, at_eyes: float = 1.0) -> Tensor:
    """L1 + 2 L2, more at the mouth and `at_eyes`, + 0.5 L1 of differences of neighbours."""
    weight = torch.ones(x.shape[-2:])
    eyes(weight).fill_(at_eyes)
    mouth(weight).fill_(AT_MOUTH)
    error = x - y
    loss = ((error.abs() + 2 * error.square()) * weight).mean() / weight.mean()
    return loss + .5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def psnr(x: Tensor, y: Tensor) -> float:
    return 10 * math.log10(4 / F.mse_loss(x, y).item())


@torch.no_grad()
def evaluate(vae: VAE, images: Tensor) -> list[float]:
    """PSNR in dB of whole pictures, of their mouths and of their eyes."""
    decoded = vae.to_images(vae.to_latents(images))
    return [psnr(part(decoded), part(images)) for part in (lambda x: x, mouth, eyes)]


@torch.no_grad()
def normalised(vae: VAE, images: Tensor) -> VAEConfig:
    """The config with each latent channel's mean and standard deviation over `images`."""
    z = vae.encode(images).mean
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

    def batch(self, seed: int) -> Tensor:
        return random_faces(np.random.default_rng(seed), BATCH, self.size)

    @cached_property
    def familiar(self) -> Tensor:
        return torch.cat([F.interpolate(random_faces(np.random.default_rng(HELD_OUT - 2 - i), 1,
                                                     4 * self.size), (self.size, self.size),
                                        mode="area") for i in range(500)])


class FilmedFaces:
    """The same of the videos in a folder, of which every tenth is held out. Raises InputError where
    there are none to learn from, or none to be measured on."""

    def __init__(self, folder: Path, size: int):
        self.size, videos = size, prepare.Videos(folder, size)
        kept: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for i in range(len(videos)):
            try:
                kept[videos.held_out(i)] += [piece.pictures[::3] for piece in videos.pieces(i)]
            except InputError as error:
                warn(f"left out: {error}")
        if not kept[True] or not kept[False]:
            raise InputError(f"--data {folder}: nothing is left to learn from, or nothing to be "
                             "measured on; give more videos")
        self.pictures = np.concatenate(kept[False])  # (n, H, W, 3) uint8
        test = np.concatenate(kept[True])
        self.held_out = self._images(test[np.linspace(0, len(test) - 1, 128).astype(int)])
        self.measured = self.batch(HELD_OUT, 256)
        self.familiar = torch.cat([self.held_out, self.measured])

    def _images(self, pictures: np.ndarray) -> Tensor:
        return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1

    def batch(self, seed: int, n: int = BATCH) -> Tensor:
        rng = np.random.default_rng(seed)
        images = self._images(self.pictures[rng.integers(len(self.pictures), size=n)])
        return torch.where(torch.from_numpy(rng.random(n) < .5)[:, None, None, None],
                           images.flip(-1), images)


@torch.no_grad()
def familiar_error(vae: VAE, images: Tensor) -> float:
    """The largest `brightness_error` of a familiar picture: 1.3 times the largest of `images`."""
    return 1.3 * max(brightness_error(vae, part).max().item() for part in images.split(25))


def train(out: Path, minutes: float, faces: DrawnFaces | FilmedFaces, resume: bool,
          decoder_of: Path | None) -> None:
    torch.manual_seed(0)
    state = load_state(out / "vae.state") if resume else {}
    step, before = state.get("step", 0), state.get("seconds", 0.0)  # done in earlier runs
    only_decoder = state.get("only_decoder", decoder_of is not None)
    if resume:
        config = VAEConfig(**state["config"])
    elif decoder_of:
        config = header_config(VAEConfig, decoder_of / "vae.safetensors")
    else:
        config = VAEConfig.tiny(faces.size)
    vae = VAE(config)
    if resume:
        vae.load_state_dict(state["vae"])
    elif decoder_of:
        load_part(decoder_of / "vae.safetensors", vae)
    part = vae.decoder if only_decoder else vae
    vae.requires_grad_(False)
    part.requires_grad_(True)
    optimizer = torch.optim.AdamW(part.parameters(), lr=LR, weight_decay=1e-4)
    if resume:
        optimizer.load_state_dict(state["optimizer"])
    make_folder(out)
    # Other faces than those before: the decoder's seeds are far from the first training's.
    first = HELD_OUT // 2 if only_decoder else 0
    start = reported = saved = time.monotonic()
    steps_then, seconds, running = step, before, 0.0
    while seconds < 60 * minutes:
        progress = seconds / (60 * minutes)               # the schedule follows the clock
        decay = .01 + .99 * math.cos(progress * math.pi / 2) ** 2
        for group in optimizer.param_groups:
            group["lr"] = (AGAIN_LR if only_decoder else LR) * min(1, (step + 1) / WARM_UP) * decay
        x = faces.batch(first + step)
        posterior = vae.encode(x)
        mean, logvar = posterior.mean, posterior.logvar
        y = vae.decode(posterior.sample(torch.randn_like(mean)))
        kl = .5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(y, x, AT_EYES if only_decoder else 1.0) + KL * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        step += 1
        running += (loss.item() - running) * max(.01, 1 / (step - steps_then))
        now = time.monotonic()
        seconds = before + now - start
        done = seconds >= 60 * minutes
        if now - reported > 30 or done:
            whole, at_mouth, at_eyes = evaluate(vae, faces.held_out)
            print(f"{seconds / 60:5.1f} min  step {step}  loss {running:.4f}  {whole:.2f} dB"
                  f"  mouth {at_mouth:.2f} dB  eyes {at_eyes:.2f} dB"
                  f"  {(step - steps_then) / (now - start):.2f} steps/s", flush=True)
            reported = now
        if now - saved > 120 or done:
            if not only_decoder:
                config = normalised(vae, faces.measured)
            save_state(out / "vae.state", {
                "vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "seconds": seconds, "config": asdict(config), "only_decoder": only_decoder})
            save_part(out / "vae.safetensors", vae.state_dict(), config=asdict(config), step=step,
                      familiar_error=familiar_error(vae, faces.familiar))
            save_config(replace(Config.tiny(faces.size), vae=config), out)
            saved = now
    for name, values in (("mean", config.latent_mean), ("std", config.latent_std)):
        print(f"latents' {name} {[round(v, 2) for v in values]}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=number(float, 0.01, 1e5), default=22,
                        help="training time in all")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="weights folder")
    parser.add_argument("--size", type=int, choices=(64, 128), default=64,
                        help="side of the pictures")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="folder of videos to take frames from; without it, faces are drawn")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--decoder", type=Path, metavar="DIR", help="go on with this weights folder's "
                     "autoencoder, of which only the decoder is trained")
    how.add_argument("--resume", action="store_true", help="continue what --out holds")
    args = parser.parse_args(argv)
    faces = FilmedFaces(args.data, args.size) if args.data else DrawnFaces(args.size)
    for name in ("wavlm.safetensors", "beats.safetensors") if args.data else ():
        make_folder(args.out)
        if not (args.out / name).exists():
            with replacing(args.out / name) as temporary:
                shutil.copyfile(WEIGHTS / name, temporary)
    train(args.out, args.minutes, faces, args.resume, args.decoder)


if __name__ == "__main__":
    sys.exit(run(main))
