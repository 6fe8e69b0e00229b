"""Trains stage 1, the keyframe model: `python train_keyframe.py --minutes 15`.

Several processes share each batch: `torchrun --nproc_per_node 2 train_keyframe.py`.
"""

import sys

import torch
from torch import nn

import training
from tools import begin, cli, describe, scaling
from tools.checkpoint import load_part
from tools.processes import Processes

MINUTES = 45  # on two cores; --minutes
SPATIAL_FRACTION = 0.15  # of the training: the spatial half alone, on single frames; --spatial
BATCH = 4  # windows a step
LEARNING_RATE = 2e-3  # Muon's peak, after the warm-up; that of going on from SVD is the paper's
DECAY = 0.998  # of the average of the weights, a step


def main(argv: list[str] | None = None) -> None:
    args = begin.options(argv, __doc__, MINUTES, BATCH, LEARNING_RATE, SPATIAL_FRACTION)
    if args.describe:
        return describe.describe(args, scaling.chosen(args), "keyframe")
    processes = Processes.join()
    rows = processes.rows(args.batch, args.accumulate)  # this process's share of a batch

    # The model: the autoencoder and the audio encoders are frozen, the stage is trained.
    model = begin.open_weights(args, processes)
    stage = model.keyframe
    given = args.init and args.init / "keyframe.safetensors"
    trained_before = bool(given and given.exists())
    if trained_before:
        load_part(given, stage)

    # The data: windows of 14 keyframes, 13 frames apart, with an identity frame from elsewhere.
    clips, held_out = training.open_data(args, model, stage, processes)

    stage.to(processes.device).train()
    model.vae.to(processes.device, torch.get_default_dtype())
    args.lr = args.lr or scaling.rate(stage, LEARNING_RATE)
    scaling.make_ready(stage, model.vae, args.bf16)  # LPIPS if installed, frozen layers, bf16
    optimizer = scaling.optimizer(stage, args.lr)  # ours: Muon; from SVD: AdamW, as in the paper
    average = training.averaged(stage, DECAY)
    run = training.Run("keyframe", args, model, stage, optimizer, average, held_out, processes,
                       {"trained_before": trained_before})
    parallel = scaling.sharded(stage, average, optimizer) if args.shard else (
        processes.parallel(stage, some_unused=not run.facts["trained_before"]))

    while run.go_on():
        # Ours: first the spatial half alone, which learns to draw faces from single frames: a step
        # costs less and teaches more. Temporal layers start as a pass-through, so when they come
        # in, the only change is that each frame attends to 14 audio embeddings instead of one. All
        # this is left out where --init gave weights that were trained before.
        spatial_only = run.progress < args.spatial and not run.facts["trained_before"]

        # In the spatial phase a batch has T x --batch single frames instead of --batch windows.
        size = args.batch * (stage.config.frames if spatial_only else 1)
        read = clips.singles if spatial_only else clips.batch
        batch = read(size, run.step, rows).to(processes.device)

        # What is random follows from the seed and the step. Every process draws noise levels and
        # noise for the whole batch and takes its rows, so the number of processes changes nothing
        # but the order in which numbers are summed (and, where the windows of the pixel loss cannot
        # be shared out evenly, how many these are).
        torch.manual_seed(args.seed * 10_000_000_000 + run.step)
        frame = int(torch.randint(batch.latents.shape[1], ()))  # of the pixel loss
        draws = stage.draw((size, *batch.latents.shape[1:])).rows(rows).to(processes.device)
        # For the pixel loss either phase decodes pixel_share x --batch pictures, although the
        # spatial phase has T times as many rows; with --accumulate at least one for each part.
        count = round(args.batch * stage.config.pixel_share) // processes.count
        pixels = batch.pictures(max(count, args.accumulate), frame)  # (P, 3, H, W)

        # The loss and its gradient; with --accumulate for parts of the batch, one after the other.
        optimizer.zero_grad(set_to_none=True)
        latent = pixel = 0.0
        for part in scaling.parts(args.accumulate, batch.latents, batch.identity,
                                  batch.audio_tokens, batch.emotion, draws, pixels):
            losses = parallel(model.vae, *part, frame, spatial_only)
            (sum(losses) / args.accumulate).backward()
            latent += losses[0].detach() / args.accumulate
            pixel += losses[1].detach() / args.accumulate
        norm = nn.utils.clip_grad_norm_(stage.parameters(), 1.0)  # ours
        if run.all_finite(latent + pixel, norm):
            optimizer.step()
            average.update_parameters(stage)
        run.report(latent, pixel)


if __name__ == "__main__":
    sys.exit(cli.run(main))
