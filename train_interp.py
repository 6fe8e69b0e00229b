"""Trains stage 2, the interpolation between keyframes: `python train_interp.py --minutes 15`.

It goes on from the interpolation weights of --init, or starts from the keyframe weights of --init
or of --out. Several processes share each batch: `torchrun --nproc_per_node 2 train_interp.py`.
"""

import sys

import torch
from torch import nn

import training
from stage import Stage
from tools import begin, cli, describe, scaling
from tools.checkpoint import load_part
from tools.processes import Processes
from unet import sinusoid

MINUTES = 25  # on two cores; --minutes
BATCH = 4  # windows a step
LEARNING_RATE = 1e-3  # Muon's peak, after the warm-up; that of going on from SVD is the paper's
DECAY = 0.998  # of the average of the weights, a step
EARLY = 0.2  # of the training, after which autoguidance's bad model is kept


def init_from_keyframes(stage: Stage, keyframe: Stage) -> None:
    """Interpolation starts from the keyframe model: from scratch it learns to blend its two ends
    and ignores the audio for long. The identity's input channels become the sequence's, and the
    mask channel starts at zero. The emotion has no counterpart, so what a neutral one contributed
    becomes a part of the bias. Thus it begins as the keyframe model that is told a neutral emotion:
    its mouth moves with the sound already, and it has only to learn what the ends are for."""
    theirs, ours = keyframe.state_dict(), stage.state_dict()  # the stage's own tensors
    width = keyframe.config.unet.emotion_dim
    neutral = sinusoid(torch.zeros(2), width // 2).flatten()  # (width,)
    for name, value in ours.items():
        given = theirs.get(name)
        if name == "unet.input_blocks.0.0.weight":  # 2C + 1 input channels from 2C
            value[:, :given.shape[1]] = given
            value[:, given.shape[1]:] = 0
        elif name == "unet.label_emb.0.0.weight":  # [emotion, audio]: the emotion stands in front
            value.copy_(given[:, width:])
        elif name == "unet.label_emb.0.0.bias":
            value.copy_(given + theirs["unet.label_emb.0.0.weight"][:, :width] @ neutral)
        elif given is not None:
            value.copy_(given)


def main(argv: list[str] | None = None) -> None:
    args = begin.options(argv, __doc__, MINUTES, BATCH, LEARNING_RATE)
    if args.describe:
        return describe.describe(args, scaling.chosen(args), "interp")
    processes = Processes.join()
    rows = processes.rows(args.batch, args.accumulate)  # this process's share of a batch

    # The model: interpolation weights of --init, else keyframe weights of --init or of --out.
    model = begin.open_weights(args, processes)
    stage = model.interp
    keyframes = [path for folder in (args.init, args.out) if folder
                 and (path := folder / "keyframe.safetensors").exists()]
    if args.init and (args.init / "interp.safetensors").exists():
        load_part(args.init / "interp.safetensors", stage)
    elif keyframes and not args.resume:
        load_part(keyframes[0], model.keyframe)
        init_from_keyframes(stage, model.keyframe)
    elif not args.resume:
        cli.warn("there are no keyframe weights to start from; run train_keyframe.py first, as "
                 "from nothing interpolation ignores the audio for long")
    # Weights that go on from finished ones are never under-trained again: they keep the bad model
    # that --init brought along. (Where it brought none, an early copy has to do, and guides less.)
    early_due = not (args.init and (args.init / "interp_bad.safetensors").exists())

    # The data: segments of 14 consecutive frames, of which the first and the last are known.
    clips, held_out = training.open_data(args, model, stage, processes)

    stage.to(processes.device).train()
    model.vae.to(processes.device, torch.get_default_dtype())
    args.lr = args.lr or scaling.rate(stage, LEARNING_RATE)
    scaling.make_ready(stage, model.vae, args.bf16)
    optimizer = scaling.optimizer(stage, args.lr)
    average = training.averaged(stage, DECAY)
    run = training.Run("interp", args, model, stage, optimizer, average, held_out, processes,
                       {"early_due": early_due})
    parallel = scaling.sharded(stage, average, optimizer) if args.shard else (
        processes.parallel(stage, some_unused=False))

    while run.go_on():
        # Autoguidance needs a bad model: the same network while it is still under-trained. It is
        # kept before the step, so that a training killed at this point keeps the same one again.
        if run.facts["early_due"] and run.progress >= EARLY:
            if run.takes_part:
                run.keep(args.out / "interp_bad.safetensors")
            run.facts["early_due"] = False

        # Every process draws for the whole batch and takes its rows, as in train_keyframe.py.
        batch = clips.batch(args.batch, run.step, rows).to(processes.device)
        torch.manual_seed(args.seed * 10_000_000_000 + run.step)
        draws = stage.draw((args.batch, *batch.latents.shape[1:])).rows(rows).to(processes.device)
        ends = training.known_latents(stage, batch)  # z_s and z_e, (B, 2, C, h, w)

        # The loss, here without a pixel loss, and its gradient; with --accumulate part by part.
        optimizer.zero_grad(set_to_none=True)
        latent = 0.0
        for part in scaling.parts(args.accumulate, batch.latents, ends, batch.audio_tokens, None,
                                  draws):
            loss, no_pixel_loss = parallel(model.vae, *part)
            (loss / args.accumulate).backward()
            latent += loss.detach() / args.accumulate
        norm = nn.utils.clip_grad_norm_(stage.parameters(), 1.0)  # ours
        if run.all_finite(latent, norm):
            optimizer.step()
            average.update_parameters(stage)
        run.report(latent, no_pixel_loss)


if __name__ == "__main__":
    sys.exit(cli.run(main))
