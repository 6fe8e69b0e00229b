"""What training of both stages shares: options, phases, the loop, what it shows and what it keeps.

`train_keyframe.py` and `train_interp.py` only choose their numbers. On a CPU one process a core
shares each batch (gradients averaged over gloo): two processes of one thread are faster than one
process of two.
"""

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp

from checkpoint import (
    from_dict,
    load_config,
    load_metadata,
    load_part,
    load_state,
    save_part,
    save_state,
    save_text,
)
from data import FROZEN, Windows, load_frozen, open_source, prepare
from diffusion import latent_loss, sample, schedule
from figures import plot_metrics, save_picture
from keyface import Conditions, Config, KeyFace, Stage, guided_keyframes, guided_segments
from media import InputError
from vae import VAEConfig

SHIPPED = Path(__file__).parent / "weights" / "tiny"
SAVE_EVERY, REPORT_EVERY, SHEET_EVERY = 180, 60, 600  # seconds


@dataclass
class Recipe:
    """The numbers in which the two stages' trainings differ."""

    name: str  # "keyframe" or "interp"
    minutes: float
    images: float  # share of the time for the spatial half on single frames
    windows: int  # training windows in the cache
    per_clip: int  # windows cut from one clip
    batch: int = 4  # windows a step, over all processes
    learning_rate: float = 1.5e-3
    warmup: int = 100  # steps
    ema: float = 0.998
    early: float = 0.2  # share of the time after which autoguidance's bad model is kept


def parse(recipe: Recipe, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/toy"), help="weights folder to train into")
    add("--minutes", type=float, default=recipe.minutes,
        help="training time, without data preparation")
    add("--init", type=Path, help="weights folder to start from")
    add("--resume", action="store_true", help="continue the training that --out holds")
    add("--data", help="folder of videos with sound; without it, the drawn world")
    add("--windows", type=int, default=recipe.windows, help="training windows to prepare")
    add("--batch", type=int, default=recipe.batch, help="windows a step")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0,
        help="processes (default: one a CPU core, one on a GPU)")
    args = parser.parse_args()
    for name in ("minutes", "windows", "batch"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be greater than 0")
    return args


def assemble(args: argparse.Namespace) -> KeyFace:
    """The model in `--out`, with the frozen parts of --init, of --out itself, or of the shipped
    weights; writes its config.json. Raises InputError if none of them holds them."""
    args.out.mkdir(parents=True, exist_ok=True)
    folders = [f for f in (args.init, args.out, SHIPPED) if f and (f / "vae.safetensors").exists()]
    if not folders:
        raise InputError(f"{args.out}: holds no autoencoder and encoders; run "
                         "python -m toy.train_vae and python -m toy.train_encoders first, "
                         "or give --init")
    source = folders[0]
    for name in FROZEN:
        if source != args.out:
            shutil.copyfile(source / f"{name}.safetensors", args.out / f"{name}.safetensors")
    if (source / "config.json").exists():
        config = load_config(Config, source)
    else:
        header = load_metadata(source / "vae.safetensors").get("config", "null")
        vae = from_dict(VAEConfig, json.loads(header), "vae.safetensors")
        config = replace(Config.tiny(), vae=vae)
    save_text(args.out / "config.json", json.dumps(asdict(config), indent=1) + "\n")
    return load_frozen(args.out)


def init_from_keyframes(stage: Stage, keyframe: Stage) -> None:
    """Interpolation starts from the keyframe model: from scratch it learns to blend its ends and
    ignores the sound for long. The identity channels become the sequence channels; the mask
    channel and emotion have no counterpart."""
    theirs = keyframe.state_dict()
    ours = stage.state_dict()
    for name, value in ours.items():
        given = theirs.get(name)
        if name == "unet.input_blocks.0.0.weight":
            value[:, :given.shape[1]] = given
            value[:, given.shape[1]:] = 0
        elif name == "unet.label_emb.0.0.weight":
            value.copy_(given[:, -value.shape[1]:])  # the emotion stands in front
        elif given is not None:
            value.copy_(given)
    stage.load_state_dict(ours)


def conditions_of(stage: Stage, batch: Windows, tokens: Tensor | None = None) -> tuple[Tensor, ...]:
    """The arguments of `Stage.conditions` for a batch: known latents, tokens, valence, arousal."""
    latents = batch.latents[:, [0, -1]] if stage.config.interpolation else batch.identity
    tokens = batch.tokens if tokens is None else tokens
    return latents, tokens, batch.mood[..., 0], batch.mood[..., 1]


@torch.no_grad()
def validate(stage: Stage, held_out: Windows) -> dict[str, float]:
    """Latent loss, unweighted, on held-out windows with fixed noise at two noise levels; at the
    higher also with another clip's sound. Only a model that listens makes a difference between the
    last two."""
    result = {}
    for sigma, other in ((1.0, False), (10.0, False), (10.0, True)):
        generator, losses = torch.Generator().manual_seed(1), []
        for start in range(0, len(held_out), 8):
            batch = held_out.rows(slice(start, start + 8)).to(next(stage.parameters()).device)
            tokens = batch.tokens.roll(1, 0) if other else batch.tokens
            known = stage.conditions(*conditions_of(stage, batch, tokens))
            noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
            levels = torch.full((len(noise),), sigma, device=noise.device)
            out = stage.denoise(batch.latents + sigma * noise, levels, known)
            losses.append(latent_loss(out, batch.latents, levels, 1.0) / (1 + sigma**-2))
        name = f"val_{sigma:g}" + ("_other_sound" if other else "")
        result[name] = torch.cat(losses).mean().item()
    return result


@torch.no_grad()
def sheet(path: Path, model: KeyFace, stage: Stage, held_out: Windows) -> None:
    """A picture of three held-out windows: truth, sample, and sample with another clip's sound."""
    batch = held_out.rows(slice(0, 3)).to(next(stage.parameters()).device)
    rows = [batch.latents]
    for tokens in (batch.tokens, batch.tokens.roll(1, 0)):
        known: Conditions = stage.conditions(*conditions_of(stage, batch, tokens))
        if stage.config.interpolation:
            guided = guided_segments(stage.denoise, known)
        else:
            guided = guided_keyframes(stage.denoise, known, model.config.id_guidance,
                                      model.config.audio_guidance)
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
        *_, x = sample(guided, noise, schedule(10, stage.config.sigma_max))
        rows.append(x)
    grid = torch.stack(rows, dim=1).flatten(0, 1)  # (9, T, C, h, w)
    images = model.vae.to_images(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
    picture = ((images + 1) * 127.5).byte().permute(0, 3, 1, 4, 2)  # (9, H, T, W, 3)
    save_picture(path, picture.flatten(2, 3).flatten(0, 1).cpu().numpy())


class Ema:
    """Exponential moving average of the parameters; a ramp makes it forget the start soon."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.average = decay, {k: v.clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        values = [state[k] for k in self.average]
        torch._foreach_lerp_(list(self.average.values()), values, 1 - decay)


def code_version() -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(recipe: Recipe, args: argparse.Namespace) -> int:
    """Prepares data, trains, and returns the exit status: 0, 2 for bad input, 130 or 143."""
    stop = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.setdefault("signal", n))
    try:
        model = assemble(args)
        stage_config = getattr(model.config, recipe.name)
        size, cache = model.config.size, args.out / "cache"
        train = prepare(cache / f"{recipe.name}-{args.windows}-{args.seed}.safetensors",
                        open_source(args.data, "train", size), args.out, stage_config,
                        args.windows, args.seed, recipe.per_clip)
        held_out = prepare(cache / f"{recipe.name}-held-out.safetensors",
                           open_source(args.data, "test", size), args.out, stage_config, 32,
                           per_clip=1, first=10_000)
        if stop:
            return 128 + stop["signal"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cores = 1 if device.type == "cuda" else os.cpu_count() or 1
        workers = args.workers or min(cores, args.batch)
        print(f"{recipe.name}: {len(train)} windows, {args.minutes:g} minutes on {device}, "
              f"{workers} processes", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            context = mp.get_context("spawn")
            shared = workers, folder, recipe, args, train, held_out, device
            others = [context.Process(target=loop, daemon=True, args=(rank, *shared, {}))
                      for rank in range(1, workers)]
            for process in others:
                process.start()
            loop(0, *shared, stop)
            for process in others:
                process.join()
    except InputError as error:
        print(f"train_{recipe.name}: {error}", file=sys.stderr)
        return 2
    return 128 + stop["signal"] if stop else 0


def loop(rank: int, workers: int, folder: str, recipe: Recipe, args: argparse.Namespace,
         train: Windows, held_out: Windows, device: torch.device, stop: dict) -> None:
    """The training loop of one process; rank 0 measures, shows and saves."""
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank,
                                world_size=workers)
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 tells when to stop
    torch.manual_seed(args.seed)  # the same first weights in every process
    model = load_frozen(args.out)
    stage: Stage = getattr(model, recipe.name).to(device).train()
    model.vae.to(device)
    interpolation = stage.config.interpolation
    start_from = args.init or args.out
    if args.init and (args.init / f"{recipe.name}.safetensors").exists():
        load_part(args.init / f"{recipe.name}.safetensors", stage)
    elif interpolation and (start_from / "keyframe.safetensors").exists():
        load_part(start_from / "keyframe.safetensors", model.keyframe)
        init_from_keyframes(stage, model.keyframe.to(device))
    parameters = list(stage.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99),
                                  weight_decay=0.01, foreach=True)
    ema = Ema(stage, recipe.ema)
    step, before, rows = 0, 0.0, []  # steps and seconds of earlier runs
    state_path, csv_path = args.out / f"{recipe.name}.state", args.out / f"{recipe.name}.csv"
    if args.resume:
        if not state_path.exists():
            raise InputError(f"--resume: {state_path} does not exist")
        state = load_state(state_path)
        stage.load_state_dict(state["stage"])
        optimizer.load_state_dict(state["optimizer"])
        ema.average = {k: v.to(device) for k, v in state["ema"].items()}
        step, before = state["step"], state["seconds"]
        if csv_path.exists():
            with open(csv_path, newline="") as file:
                rows = [{k: float(v) if v else "" for k, v in row.items()}
                        for row in csv.DictReader(file)]
    # Another stream of batches and noise for each process, and for each continuation.
    torch.manual_seed(args.seed * 1_000_003 + step * 101 + rank)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    batch_size = max(1, args.batch // workers)
    batches = train.batches(batch_size, generator.initial_seed())
    metadata = {"config": asdict(stage.config), "version": code_version(), "seed": args.seed}
    early_path = args.out / "interp_bad.safetensors"

    def averaged() -> Stage:
        good = Stage(stage.config).to(device).eval()
        good.load_state_dict(ema.average)
        return good

    def save_average(path: Path, seconds: float) -> None:
        save_part(path, ema.average, step=step, minutes=round(seconds / 60, 1), **metadata)

    def save(seconds: float) -> None:
        save_average(args.out / f"{recipe.name}.safetensors", seconds)
        save_state(state_path, {"stage": stage.state_dict(), "ema": ema.average, "step": step,
                                "optimizer": optimizer.state_dict(), "seconds": seconds})

    began = time.monotonic()
    reported, saved, shown, steps_since, losses = 0.0, 0.0, 0.0, 0, []
    early_kept = interpolation and args.resume and early_path.exists()
    while True:
        seconds = before + time.monotonic() - began
        control = torch.tensor([seconds / (60 * args.minutes), float(bool(stop))])
        if workers > 1:
            dist.broadcast(control, 0)  # all processes see the same clock
        progress, stopping = control.tolist()
        if progress >= 1 or stopping:
            break
        images = progress < recipe.images
        warmth = min(1, (step + 1) / recipe.warmup)
        rate = max(0.5 * (1 + math.cos(math.pi * progress)), 0.02) * warmth
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate

        batch = (train.singles(batch_size * 14, generator) if images else next(batches)).to(device)
        frame = int(torch.randint(batch.latents.shape[1], (1,), generator=generator))
        few = slice(0, batch_size)  # of single frames, pixels of a few are enough
        optimizer.zero_grad(set_to_none=True)
        latent, pixel = stage.loss(model.vae, batch.latents, *conditions_of(stage, batch),
                                   batch.pixels[:, frame], frame, images=images, pixel_rows=few)
        (latent + pixel).backward()
        if workers > 1:
            average_gradients(parameters, workers)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if rank:
            continue
        ema.update(stage, step)
        losses.append((latent.item(), pixel.item()))
        steps_since += 1
        if interpolation and not early_kept and progress >= recipe.early:
            save_average(early_path, seconds)
            early_kept = True
        if seconds - before - reported > REPORT_EVERY:
            average = np.mean(losses, axis=0)
            rows.append({"minutes": round(seconds / 60, 2), "step": step,
                         "latent_loss": average[0], "pixel_loss": average[1],
                         "images": float(images), **validate(averaged(), held_out)})
            speed = steps_since / (seconds - before - reported)
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items())
            print(f"{numbers}  {speed:.2f} steps/s", flush=True)
            text = [",".join(rows[-1])] + [",".join(str(row[k]) for k in rows[-1]) for row in rows]
            save_text(csv_path, "\n".join(text) + "\n")
            plot_metrics(args.out / f"{recipe.name}_curves.png", rows)
            reported, steps_since, losses = time.monotonic() - began, 0, []
        if seconds - before - saved > SAVE_EVERY:
            save(seconds)
            saved = time.monotonic() - began
        if seconds - before - shown > SHEET_EVERY:
            sheet(args.out / f"{recipe.name}_sheet.png", model, averaged(), held_out)
            shown = time.monotonic() - began
    if rank == 0:
        save(seconds)
        sheet(args.out / f"{recipe.name}_sheet.png", model, averaged(), held_out)
        print(f"{'stopped' if stopping else 'done'}: step {step}, {seconds / 60:.1f} minutes; "
              f"in {args.out}", flush=True)
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """The mean of all processes' gradients, as one message."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= workers
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)
