"""What training of both stages shares: options, phases, the loop, what it shows and what it keeps.

`train_keyframe.py` and `train_interp.py` only choose their numbers. On a CPU one process a core
shares each batch (gradients averaged over gloo): two processes of one thread are faster than one
process of two.
"""

import argparse
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch import multiprocessing as mp

from data import Windows, find_frozen, frozen_parts, load_frozen, open_source, prepare
from diffusion import latent_loss, sample, schedule
from keyface import KeyFace
from stage import Conditions, Stage, guided_keyframes, guided_segments
from tools import checkpoint
from tools.cli import InputError, Parser, make_folder, replacing
from tools.figures import load_metrics, save_grid, save_metrics

SHIPPED = Path(__file__).parent / "weights" / "tiny"
SAVE_EVERY, REPORT_EVERY, SHEET_EVERY = 180, 60, 600  # seconds
SIGNALS = signal.SIGINT, signal.SIGTERM
# What the errors say that are the machine's fault, in torch, safetensors and gloo.
TROUBLE = "out of memory|allocate memory|[Nn]o space|writ(e|ing) f|terminated with signal|by peer"


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
    parser = Parser(description=description)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/toy"), help="weights folder to train into")
    add("--minutes", type=float, default=recipe.minutes,
        help="training time, without data preparation")
    add("--steps", type=int, help="train for so many steps instead; rate and phases follow them")
    add("--init", type=Path, help="weights folder to start from")
    add("--resume", action="store_true", help="continue the training that --out holds")
    add("--data", help="folder of videos with sound; without it, the drawn world")
    add("--windows", type=int, default=recipe.windows, help="training windows to prepare")
    add("--batch", type=int, default=recipe.batch, help="windows a step")
    add("--lr", type=float, default=recipe.learning_rate, help="highest learning rate")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0,
        help="processes (default: one a core, at most --batch; on a GPU one)")
    args = parser.parse_args()
    for name in ("minutes", "steps", "windows", "batch", "lr"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be a number greater than 0")
    if not 0 <= args.seed <= 10**9 or args.workers < 0:
        parser.error("--seed must be from 0 to 1e9, --workers not negative")
    if args.resume:
        args.init = None  # --out holds it all
    return args


def assemble(args: argparse.Namespace) -> None:
    """Makes `--out` a weights folder with config.json and the frozen parts of --init, of --out
    itself, or of the shipped weights; of --init also the bad model, which finished weights to go
    on from no longer give. Raises InputError where they are missing."""
    make_folder(args.out)
    if args.resume:
        return
    source, config = find_frozen([args.init] if args.init else [args.out, SHIPPED])
    bad = args.init and (args.init / "interp_bad.safetensors").exists()
    for name in frozen_parts(config) + ["interp_bad"] * bool(bad):
        if source.resolve() != args.out.resolve():
            with replacing(args.out / f"{name}.safetensors") as temporary:
                shutil.copyfile(source / f"{name}.safetensors", temporary)
    checkpoint.save_config(config, args.out)


def begin(recipe: Recipe, args: argparse.Namespace) -> tuple[KeyFace, Stage, dict]:
    """The model of `--out`, the stage to train with its first weights, and the state that --resume
    continues (else empty). Raises InputError for files that are missing or do not fit."""
    torch.manual_seed(args.seed)  # the same first weights in every process
    model = load_frozen(args.out)
    stage: Stage = getattr(model, recipe.name)
    if args.resume:
        path = args.out / f"{recipe.name}.state"
        if not path.exists():
            raise InputError(f"--resume: {path} does not exist")
        state = checkpoint.load_state(path)
        try:
            stage.load_state_dict(state["stage"])
        except (KeyError, RuntimeError, TypeError):
            raise InputError(f"--resume: {path} does not fit config.json") from None
        return model, stage, state
    if args.init and (args.init / f"{recipe.name}.safetensors").exists():
        checkpoint.load_part(args.init / f"{recipe.name}.safetensors", stage)
    elif stage.config.interpolation:
        given = [f for f in (args.init, args.out) if f and (f / "keyframe.safetensors").exists()]
        if given:
            checkpoint.load_part(given[0] / "keyframe.safetensors", model.keyframe)
            init_from_keyframes(stage, model.keyframe)
    return model, stage, {}


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
    """The arguments of `Stage.conditions` for a batch: known latents, tokens, mood."""
    latents = batch.latents[:, [0, -1]] if stage.config.interpolation else batch.identity
    return latents, batch.tokens if tokens is None else tokens, batch.mood


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
    save_grid(path, model.vae.to_images(grid.flatten(0, 1)).unflatten(0, grid.shape[:2]))


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


def run(recipe: Recipe, description: str) -> int:
    """Prepares data, trains, and returns the exit status: 0, 2 for bad input, 1 for trouble with
    the machine, 130 or 143 after a signal."""
    stop = {}

    def leave(number: int, _) -> None:
        """Until training begins there is nothing to save. A second signal comes too late."""
        if not stop:
            stop["signal"] = number
            sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, leave)
    try:
        args = parse(recipe, description)
        assemble(args)
        model, stage, _ = begin(recipe, args)  # what is wrong with files shows before the long part
        make = {"cache": args.out / "cache", "weights": args.out, "stage": stage.config}
        train, held_out = (open_source(args.data, split, model.size) for split in ("train", "test"))
        train = prepare(source=train, count=args.windows, seed=args.seed,
                        per_clip=recipe.per_clip, **make)
        held_out = prepare(source=held_out, count=32, per_clip=1, first=10_000, **make)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cores = 1 if device.type == "cuda" else os.cpu_count() or 1
        workers = min(args.workers or cores, args.batch)
        print(f"{recipe.name}: {len(train)} windows, {args.minutes:g} minutes on {device}, "
              f"{workers} processes", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            context = mp.get_context("spawn")
            shared = workers, folder, recipe, args, train, held_out, device
            for number in SIGNALS:  # ignored in the other processes: rank 0 tells when to stop
                signal.signal(number, signal.SIG_IGN)
            for rank in range(1, workers):
                context.Process(target=loop, daemon=True, args=(rank, *shared, {})).start()
            for number in SIGNALS:
                signal.signal(number, lambda n, _: stop.setdefault("signal", n))
            loop(0, *shared, stop)
            return 128 + stop["signal"] if stop else 0
    except InputError as error:
        status, line = 2, str(error)
    except Exception as error:
        status, line = 1, (str(error).strip() or type(error).__name__).splitlines()[-1]
        if not isinstance(error, (OSError, MemoryError)) and not re.search(TROUBLE, line):
            raise
        if isinstance(error, MemoryError) or re.search("of memory|allocate memory", line):
            line += "; close other programs, or use a smaller --batch or fewer --windows"
    finally:
        for process in mp.active_children():
            process.kill()
    print(f"train_{recipe.name}.py: error: {' '.join(line.split())}", file=sys.stderr)
    return status


def loop(rank: int, workers: int, folder: str, recipe: Recipe, args: argparse.Namespace,
         train: Windows, held_out: Windows, device: torch.device, stop: dict) -> None:
    """The training loop of one process; rank 0 measures, shows and saves."""
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank,
                                world_size=workers)
    model, stage, state = begin(recipe, args)
    stage.to(device).train()
    model.vae.to(device)
    parameters = list(stage.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99),
                                  weight_decay=0.01, foreach=True)
    ema = Ema(stage, recipe.ema)
    csv_path, rows = args.out / f"{recipe.name}.csv", []
    step, before = state.get("step", 0), state.get("seconds", 0.0)  # of earlier runs
    if state:
        optimizer.load_state_dict(state["optimizer"])
        ema.average = {k: v.to(device) for k, v in state["ema"].items()}
        rows = [row for row in load_metrics(csv_path) if row["step"] <= step]
    batch_size = max(1, args.batch // workers)
    metadata = {"config": asdict(stage.config), "version": checkpoint.code_version(),
                "seed": args.seed}
    early_path = args.out / "interp_bad.safetensors"
    # Weights to go on from have done the spatial half.
    going_on = bool(args.init) and (args.init / f"{recipe.name}.safetensors").exists()
    finished = state.get("finished", going_on)
    given = args.init or (args.out if state else None)
    early_due = stage.config.interpolation and not (given and (given / early_path.name).exists())

    def averaged() -> Stage:
        good = Stage(stage.config).to(device).eval()
        good.load_state_dict(ema.average)
        return good

    def save_average(path: Path) -> None:
        checkpoint.save_part(path, ema.average, step=step, minutes=round(seconds / 60, 1),
                             **metadata)

    began, losses = time.monotonic(), []
    reported = saved = shown = 0.0  # seconds
    saved_step = step
    while True:
        now = time.monotonic() - began
        seconds = before + now
        progress = step / args.steps if args.steps else seconds / (60 * args.minutes)
        control = torch.tensor([progress, float(bool(stop))])
        if workers > 1:
            dist.broadcast(control, 0)  # all processes see the same clock
        progress, stopping = control.tolist()
        done = progress >= 1
        images = progress < recipe.images and not finished
        if rank == 0 and step > saved_step and (done or stopping or now - saved > SAVE_EVERY):
            save_average(args.out / f"{recipe.name}.safetensors")
            checkpoint.save_state(args.out / f"{recipe.name}.state", {
                "stage": stage.state_dict(), "ema": ema.average, "step": step,
                "optimizer": optimizer.state_dict(), "seconds": seconds, "finished": finished})
            saved, saved_step = time.monotonic() - began, step
        if rank == 0 and losses and not stopping:
            if early_due and progress >= recipe.early:
                save_average(early_path)
                early_due = False
            if done or now - reported > min(REPORT_EVERY, 5 + reported):  # often at first
                average = np.mean(losses, axis=0)
                rows.append({"minutes": round(seconds / 60, 2), "step": step,
                             "latent_loss": average[0], "pixel_loss": average[1],
                             "images": float(images), **validate(averaged(), held_out)})
                numbers = "  ".join(f"{k} {v if k == 'step' else f'{v:.4g}'}"
                                    for k, v in rows[-1].items())
                print(f"{numbers}  {len(losses) / (now - reported):.2f} steps/s", flush=True)
                save_metrics(csv_path, rows)
                reported, losses = time.monotonic() - began, []
            if done or now - shown > SHEET_EVERY:
                sheet(args.out / f"{recipe.name}_sheet.png", model, averaged(), held_out)
                shown = time.monotonic() - began
        if done or stopping:
            break

        warmth = min(1, (step + 1) / recipe.warmup)
        rate = max(0.5 * (1 + math.cos(math.pi * progress)), 0.02) * warmth
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        # All that is random follows from seed, process and step: resuming needs no other state.
        torch.manual_seed((args.seed * 1000 + rank) * 10_000_000 + step)
        batch = (train.singles(batch_size * 14) if images
                 else train.batch(batch_size, step, args.seed * 1000 + rank)).to(device)
        frame = int(torch.randint(batch.latents.shape[1], ()))
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
        if rank == 0:
            ema.update(stage, step)
            losses.append((latent.item(), pixel.item()))
    if rank == 0:
        print(f"{'done' if done else 'stopped'}: step {step}, {seconds / 60:.1f} minutes; "
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
