"""What the trainings of both stages share; `train_keyframe.py` and `train_interp.py` are the loops.

In reading order: the windows to learn from, the average of the weights, what is measured and shown,
and `Run`, which keeps the clock, reports and saves. (The options and the weights folder to train
into are in tools/begin.py.)
"""

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from data import Clips, Windows, open_cache
from diffusion import latent_loss, sample, schedule
from keyface import KeyFace
from stage import Stage, guided_keyframes, guided_segments
from tools import checkpoint, scaling
from tools.cli import InputError, explained, remember_signals
from tools.figures import load_metrics, save_grid, save_metrics, tensorboard
from tools.processes import Processes

SAVE_EVERY, REPORT_EVERY, SHEET_EVERY = 180, 240, 900  # seconds
HELD_OUT = 32  # windows
WARM_UP = 100  # steps in which the learning rate rises
NOT_FINITE = 10  # steps in a row that are skipped before a training gives up


# ---- the windows ------------------------------------------------------------------------------


def open_data(args: argparse.Namespace, model: KeyFace, stage: Stage,
              processes: Processes) -> tuple[Clips, Windows]:
    """Clips to learn from, and held-out windows in memory. Rank 0 prepares them, where that is not
    done yet; the others wait for it."""
    def read() -> tuple[Clips, Windows]:
        cache = open_cache(args.data, args.out, args.clips, args.out)
        clips, held_out = (Clips(cache, split, stage.config, model.vae.scale, args.out, seed)
                           for split, seed in (("train", args.seed), ("test", 0)))
        return clips, held_out.batch(HELD_OUT, 0)

    found = read() if processes.rank == 0 else None
    processes.wait()
    return found or read()


# ---- the average of the weights ---------------------------------------------------------------


def averaged(stage: Stage, decay: float) -> AveragedModel:
    """Ours: an exponential moving average of the parameters, which is kept and sampled with, as it
    is better than the last step's. The decay ramps up, so initial weights fade quickly."""
    # w_average <- decay w_average + (1 - decay) w. The last steps of a training jump about the best
    # weights, as each sees few windows; their mean lies nearer to them.
    def average(old: list[Tensor], new: list[Tensor], count: Tensor) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(old, new, 1 - now)

    return AveragedModel(stage, multi_avg_fn=average)


# ---- what is measured and shown ---------------------------------------------------------------


def known_latents(stage: Stage, batch: Windows) -> Tensor:
    """The latents a stage is told: the identity (B, C, h, w), or both ends (B, 2, C, h, w)."""
    return batch.latents[:, [0, -1]] if stage.config.interpolation else batch.identity


@torch.no_grad()
def validate(stage: Stage, held_out: Windows) -> dict[str, float]:
    """The plain mean of (D - x0)^2 on held-out windows with fixed noise, at sigma 1 and 10; at 10 a
    second time with each window given another one's audio. If the two numbers at 10 are equal, the
    model ignores the audio, or the only held-out clip is hardly longer than a window."""
    result = {}
    for sigma, other in ((1.0, False), (10.0, False), (10.0, True)):
        generator, losses = torch.Generator().manual_seed(1), []
        for start in range(0, len(held_out), 8):
            batch = held_out.rows(slice(start, start + 8)).to(next(stage.parameters()).device)
            tokens = batch.audio_tokens.roll(1, 0) if other else batch.audio_tokens
            known = stage.conditions(known_latents(stage, batch), tokens, batch.emotion)
            noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
            levels = torch.full((len(noise),), sigma, device=noise.device)
            out = stage.denoise(batch.latents + sigma * noise, levels, known)
            losses.append(latent_loss(out, batch.latents, levels, 1.0) / (1 + sigma**-2))
        name = f"val_{sigma:g}" + ("_other_audio" if other else "")
        result[name] = torch.cat(losses).mean().item()
    return result


@torch.no_grad()
def sheet(path: Path, model: KeyFace, stage: Stage, held_out: Windows) -> None:
    """Writes a picture of three held-out windows: the truth after the autoencoder, a sample, and a
    sample with another window's audio."""
    batch = held_out.rows(slice(0, 3)).to(next(stage.parameters()).device)
    rows = [batch.latents]
    for tokens in (batch.audio_tokens, batch.audio_tokens.roll(1, 0)):
        known = stage.conditions(known_latents(stage, batch), tokens, batch.emotion)
        if stage.config.interpolation:
            guided = guided_segments(stage.denoise, known)
        else:
            guided = guided_keyframes(stage.denoise, known, model.config.id_guidance,
                                      model.config.audio_guidance, batched=False)
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents)
        *_, x = sample(guided, noise, schedule(10, stage.config.sigma_max))
        rows.append(x)
    grid = torch.stack(rows, dim=1).flatten(0, 1)  # (9, T, C, h, w)
    save_grid(path, model.vae.to_images(grid.flatten(0, 1)).unflatten(0, grid.shape[:2]))


# ---- the run ----------------------------------------------------------------------------------


class Run:
    """One training from its first step to its last: the clock, the reports, what is saved.

    Loops read `step`, `progress` (0 to 1) and `facts`, ask `go_on` before each step and
    `all_finite` before the weights change, and call `report` after it. A run stops at the end of
    its time or steps, or saves and stops at a signal. `facts` is what a script has to remember over
    --resume.
    """

    def __init__(self, name: str, args: argparse.Namespace, model: KeyFace, stage: Stage,
                 optimizer: torch.optim.Optimizer, average: AveragedModel, held_out: Windows,
                 processes: Processes, facts: dict[str, bool]):
        self.name, self.args, self.model, self.stage = name, args, model, stage
        self.optimizer, self.average = optimizer, average
        self.held_out, self.processes, self.facts = held_out, processes, facts
        self.csv, self.metrics, self.losses = args.out / f"{name}.csv", [], []
        self.step, self.progress, self.before = 0, 0.0, 0.0  # `before`: seconds of earlier runs
        self.skipped = self.not_finite = 0  # steps, in all and up to now in a row
        self.best = math.inf  # see `measure`
        if args.resume:
            self.resume()
        self.began = time.monotonic()
        self.reported = self.saved = self.shown = 0.0  # when, in seconds since it began
        self.saved_step = self.step
        self.board = processes.rank == 0 and tensorboard(args.out / name, self.step)
        self.signals = remember_signals()
        if processes.rank == 0:
            length = f"{args.steps} steps" if args.steps else f"{args.minutes:g} minutes"
            print(f"{name}: {length} on {processes.device}, {processes.count} processes",
                  flush=True)

    def resume(self) -> None:
        """Takes weights, average, optimizer and step from NAME.state in --out."""
        path = self.args.out / f"{self.name}.state"
        state = checkpoint.load_state(path)
        try:
            self.stage.load_state_dict(state["stage"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.before = state["step"], state["seconds"]
            self.facts, self.skipped = state["facts"], state.get("skipped", 0)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise (error if explained(error) else  # such as a GPU without room for it
                   InputError(f"--resume: {path} does not fit config.json")) from None
        self.metrics = [row for row in load_metrics(self.csv) if row["step"] <= self.step]
        best = path.with_suffix(".best.safetensors")
        if best.exists():
            self.best = checkpoint.header_number(best, "held_out") or math.inf

    @property
    def seconds(self) -> float:
        """Training time so far, with that of earlier runs."""
        return self.before + time.monotonic() - self.began

    def go_on(self) -> bool:
        """The clock: whether there is a step to do, and its learning rate (ours: warm-up, then half
        a cosine down to 2 %). All processes see the same clock and the same signal."""
        args = self.args
        progress = self.step / args.steps if args.steps else self.seconds / (60 * args.minutes)
        self.progress, stopped = self.processes.agree([progress, float(bool(self.signals))])
        if self.progress >= 1 or stopped:
            self.finish()
            return False
        paper = self.stage.config.finetune  # a slow warm-up, then always the same
        warmth = min(1, (self.step + 1) / (scaling.WARM_UP if paper else WARM_UP))
        rate = max(0.5 * (1 + math.cos(math.pi * self.progress)), 1 if paper else 0.02) * warmth
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * rate
        return True

    def all_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the loss and the norm of its gradient are finite in all processes; where not, the
        step is to be skipped. Raises InputError after NOT_FINITE such steps in a row."""
        [not_finite] = self.processes.agree([float(not (loss + scaling.whole(norm, 0)).isfinite())])
        self.not_finite = self.not_finite + 1 if not_finite else 0
        self.skipped += int(not_finite)
        if self.not_finite == NOT_FINITE:
            kept = (f"--resume, from {self.args.out}/{self.name}.state of step {self.saved_step}, "
                    "which is intact, and" if self.saved_step else "to begin anew with")
            raise InputError(f"{self.name}: the loss or its gradient was not finite in "
                             f"{NOT_FINITE} steps in a row; try {kept} an --lr below "
                             f"{self.args.lr:g}")
        return not not_finite

    def report(self, latent: Tensor, pixel: Tensor) -> None:
        """Counts a step; now and then measures, shows and saves, but not after a skipped step."""
        self.step += 1
        if self.not_finite or not self.takes_part:
            return
        self.losses.append((latent.item(), pixel.item()))
        # Saving and measuring follow the clock, so that they cost the same share of any training.
        now = time.monotonic() - self.began
        due = [now - self.saved > SAVE_EVERY,
               now - self.reported > min(REPORT_EVERY, 5 + self.reported),  # often at first
               now - self.shown > SHEET_EVERY]
        for act, each in zip((self.save, self.measure, self.show), self.agreed(due)):
            if each:
                act()

    @property
    def takes_part(self) -> bool:
        """Whether this process measures and saves: the first, or (--shard) all together."""
        return self.processes.rank == 0 or self.args.shard

    def agreed(self, values: list[float]) -> list[float]:
        """These values or, with --shard, the largest of all processes'."""
        return self.processes.agree(values) if self.args.shard else values

    def measure(self) -> None:
        """Appends a row of losses to NAME.csv, prints it and draws the curves. Where the mean of
        val_1 and val_10 is the least so far, the weights are kept as NAME.best.safetensors, too."""
        # The losses of training have other noise levels at each step and go up and down with them.
        # Those on held-out windows are taken at fixed levels with fixed noise: these are to fall.
        now, losses = time.monotonic() - self.began, np.mean(self.losses, axis=0)
        self.metrics.append({"minutes": round(self.seconds / 60, 2), "step": self.step,
                             "latent_loss": losses[0], "pixel_loss": losses[1],
                             **validate(self.average.module.eval(), self.held_out)})
        numbers = "  ".join(f"{k} {v if k == 'step' else f'{v:.4g}'}"
                            for k, v in self.metrics[-1].items())
        if self.processes.rank == 0:
            print(f"{numbers}  {len(self.losses) / (now - self.reported):.2f} steps/s"
                  + f"  {self.skipped} skipped" * bool(self.skipped), flush=True)
            save_metrics(self.csv, self.metrics, self.board)
        [held_out] = self.agreed([(self.metrics[-1]["val_1"] + self.metrics[-1]["val_10"]) / 2])
        if held_out < self.best:
            self.best = held_out
            self.keep(self.csv.with_suffix(".best.safetensors"), held_out=held_out)
        self.reported, self.losses = time.monotonic() - self.began, []

    def show(self) -> None:
        """Draws NAME_sheet.png."""
        if not self.args.shard:  # the first process cannot sample alone
            sheet(self.args.out / f"{self.name}_sheet.png", self.model, self.average.module.eval(),
                  self.held_out)
        self.shown = time.monotonic() - self.began

    def keep(self, path: Path, **more: float) -> None:
        """Writes the averaged weights; the header has their origin and what was last measured."""
        state = scaling.whole(self.average.module.state_dict(), self.processes.rank)
        if self.processes.rank == 0:
            last = self.metrics[-1] if self.metrics else {}
            checkpoint.save_part(path, state, step=self.step, minutes=round(self.seconds / 60, 1),
                                 config=asdict(self.stage.config), seed=self.args.seed,
                                 figures={k: v for k, v in last.items() if k.startswith("val")},
                                 version=checkpoint.code_version(), **more)

    def save(self) -> None:
        """Writes the weights, then the state. --resume wants the same options, but none that say
        what to begin from. What is random follows from seed and step, so there is no random state
        to keep. With --steps a resumed training is exact, wherever it was killed: it goes on from
        the state and never reads the weights. With --minutes learning rate and phases follow the
        clock."""
        self.keep(self.args.out / f"{self.name}.safetensors")
        state = scaling.whole({
            "stage": self.stage.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds,
            "facts": self.facts, "skipped": self.skipped}, self.processes.rank)
        if self.processes.rank == 0:
            checkpoint.save_state(self.args.out / f"{self.name}.state", state)
        self.saved, self.saved_step = time.monotonic() - self.began, self.step

    def finish(self) -> None:
        """The end, by the clock or by a signal."""
        done = self.progress >= 1
        if self.takes_part:
            if last := done and bool(self.losses):
                self.measure()
            if self.step > self.saved_step:
                self.save()
            if last:  # after all is saved, as sampling may take more memory than training
                self.show()
        if self.processes.rank == 0:
            print(f"{'done' if done else 'stopped'}: step {self.step}, {self.seconds / 60:.1f} "
                  f"minutes; in {self.args.out}", flush=True)
        self.processes.wait()
        self.processes.leave()
