"""How a training begins, before there is anything to learn: its options and its weights folder."""

import argparse
import filecmp
import shutil
from pathlib import Path

import torch

from keyface import KeyFace
from stage import Config
from tools import checkpoint, pretrained, scaling
from tools.cli import WEIGHTS, InputError, Parser, make_folder, number, replacing
from tools.prepare import DRAWN_CLIPS
from tools.processes import Processes
from vae import VAEConfig

FROZEN = "vae", "wavlm", "beats"  # parts that the toy trainings make, before those of the stages
TIMES_SEEN = 16  # how often each clip of the drawn world is seen, about
STEPS_A_MINUTE = 220  # on fast cores; only the number of clips to prepare follows from it


def options(argv: list[str] | None, description: str, minutes: float, batch: int, lr: float,
            spatial: float | None = None) -> argparse.Namespace:
    """The options of both trainings. minutes, batch, lr and, for keyframes, spatial are the calling
    script's defaults."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/toy"), help="weights folder to train into")
    add("--minutes", type=number(float, 1e-3, 1e6), default=minutes,
        help="training time, without data preparation")
    add("--steps", type=number(int, 1, 10**9),
        help="train for so many steps instead; learning rate and phases then follow them")
    add("--init", type=Path, metavar="DIR|svd|released",
        help="weights folder to start from, or the published weights of SVD or of KeyFace")
    add("--resume", action="store_true", help="continue the training that --out holds")
    add("--data", type=Path, help="what data.py made, or a folder of videos, which is prepared "
        "first; without it, the drawn world")
    add("--clips", type=number(int, 1, 10**7), help=f"clips of the drawn world to learn from "
        f"(default: {DRAWN_CLIPS}, fewer for a short training)")
    add("--batch", type=number(int, 1, 10**5), default=batch, help="windows a step, in all")
    add("--lr", type=number(float, 1e-9, 1), help=f"highest learning rate (default: {lr:g}; "
        f"{scaling.LEARNING_RATE:g} to go on from SVD's network)")
    add("--seed", type=number(int, 0, 10**9), default=0)
    if spatial is not None:
        add("--spatial", type=number(float, 0, 1), default=spatial, metavar="FRACTION",
            help="of the training: the spatial half alone (default: %(default)g; none of it where "
            "--init gives keyframe weights)")
    scaling.add_options(add)
    args = parser.parse_args(argv)
    scaling.check_options(args)
    if args.clips is None:  # a short training does not wait for clips that it never sees
        steps = args.steps or args.minutes * STEPS_A_MINUTE
        args.clips = min(DRAWN_CLIPS, max(32, round(steps * args.batch / TIMES_SEEN)))
    return args


def open_weights(args: argparse.Namespace, processes: Processes) -> KeyFace:
    """The model of `--out`, with its frozen parts read and both stages as initialised by --seed.

    Rank 0 first makes --out a weights folder: config.json and the frozen parts of --init, or of
    --out itself, or, where --out has none, of the shipped weights; of --init also the bad model of
    autoguidance, if it is there, since a training that goes on from finished weights passes through
    no bad state. Raises InputError where parts are missing.
    """
    pretrained.published(args, processes.rank == 0)
    if processes.rank == 0:
        make_folder(args.out)
        print(f"{args.out}: networks and clips are prepared first", flush=True)
        if not args.resume:
            begun = any((args.out / f"{name}.safetensors").exists() for name in FROZEN)
            source, config = _find_frozen(args.init or (args.out if begun else WEIGHTS))
            config = scaling.settled(config, source, args)
            if args.init and begun and args.init.resolve() != args.out.resolve():
                _check_same(config.frozen(), args.init, args.out)
            bad = args.init and (args.init / "interp_bad.safetensors").exists()
            for name in config.frozen() + ["interp_bad"] * bool(bad):
                if source.resolve() != args.out.resolve():
                    with replacing(args.out / f"{name}.safetensors") as temporary:
                        shutil.copyfile(source / f"{name}.safetensors", temporary)
            checkpoint.save_config(config, args.out)
    processes.wait()
    torch.manual_seed(args.seed)  # the same first weights in every process
    return KeyFace.load_frozen(args.out)


def _check_same(names: list[str], source: Path, out: Path) -> None:
    """Raises InputError where frozen parts of --out are others than those of --init, which would
    take their place."""
    for name in names:
        ours, theirs = (folder / f"{name}.safetensors" for folder in (out, source))
        if ours.exists() and theirs.exists() and not filecmp.cmp(ours, theirs, shallow=False):
            raise InputError(f"--init: {theirs} would take the place of {ours}, which is another; "
                             "give another --out")


def _find_frozen(folder: Path) -> tuple[Path, Config]:
    """A weights folder that has all frozen parts, and its config. Raises InputError where there is
    none, or where parts are missing."""
    begun = folder.is_dir() and not (folder / "config.json").exists()
    config = Config.tiny() if begun else checkpoint.load_config(Config, folder)  # (tiny's names)
    files = ["config.json", *(f"{name}.safetensors" for name in config.frozen())]
    lacking = [name for name in files if not (folder / name).exists()]
    if lacking:
        raise InputError(f"{folder}: lacks {', '.join(lacking)}; run python -m toy.train_vae and "
                         "python -m toy.train_encoders first, or give --init")
    header = folder / "vae.safetensors"
    # An autoencoder that was trained again has other statistics than config.json says.
    if "config" in checkpoint.load_metadata(header):
        config.vae = checkpoint.header_config(VAEConfig, header)
    return folder, config
