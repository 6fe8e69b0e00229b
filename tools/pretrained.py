"""A weights folder to train from, made of published files: `python -m tools.pretrained OUT`.

Its autoencoder and audio encoders stay as they are while the two networks are trained. With --svd
these begin as Stable Video Diffusion's network, which is how the released model began. Each option
takes a file, a folder or a name on huggingface.co:

    part        default                       licence
    --vae       stabilityai/sd-vae-ft-mse     MIT; SD's image autoencoder, or SVD's with --svd
    --wavlm     microsoft/wavlm-base-plus     MIT or CC BY-SA 3.0 (its page and its makers differ)
    --beats     toninio19/keyface             MIT
    --wav2vec2  facebook/wav2vec2-base-960h   Apache 2.0; only of the size full
    --svd       none                          Stability AI's own; accept it on its page and log in
"""

import argparse
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from keyface import KeyFace
from stage import Config, Stage
from tools import released
from tools.checkpoint import check_names, save_config, save_part
from tools.cli import InputError, Parser, make_folder, run
from tools.released import Published, cached, download, shortest
from tools.scaling import PUBLISHED, finetuned, named_config

SOURCES = {"vae": "stabilityai/sd-vae-ft-mse", "wavlm": "microsoft/wavlm-base-plus",
           "beats": released.KEYFACE, "wav2vec2": "facebook/wav2vec2-base-960h"}
TENSORS = "diffusion_pytorch_model*.safetensors"
FILES = {  # as the file of a part is called, in `diffusers`' or `transformers`' form or its own
    "vae": (f"vae/{TENSORS}", TENSORS, "svd*.safetensors"),
    "svd": (f"unet/{TENSORS}", TENSORS, "svd*.safetensors"),
    "wavlm": ("WavLM-Base+.pt", "checkpoints/WavLM-Base+.pt", "pytorch_model.bin",
              "model.safetensors"),
    "beats": (released.BEATS_FILE, Path(released.BEATS_FILE).name),
    "wav2vec2": ("model.safetensors", "pytorch_model.bin"),
}
# What of a stage SVD's network does not have, or has for other inputs: it begins anew.
NEW = ("audio_proj.weight", "audio_proj.bias", "learned_mask", "unet.label_emb.0.0.weight",
       "unet.input_blocks.0.0.weight")


def locate(part: str, source: str) -> Path:
    """The file of a part: itself, in a folder, or in a repository of the hub, where it is
    downloaded once. Raises InputError where it is not."""
    path, option = Path(source), f"--{part} {source}"
    if path.is_file():
        return path
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InputError(f"{option}: no such file or folder, nor a name on huggingface.co")
    rows = [Published(part, "", source, file, 0, "stable-video" in source) for file in FILES[part]]
    kept = released.FOLDER / source.split("/")[-1]  # put there by hand
    for row in rows:
        places = [path / row.file] if path.is_dir() else [kept / row.file]
        found = shortest(places[0]) or (None if path.is_dir() else cached(row))
        if found:
            return found
    if path.is_dir():
        raise InputError(f"{option}: holds no {' nor '.join(FILES[part])}")
    for row in rows:
        try:
            return download(row, option, kept)
        except released.Absent as error:
            problem = error
    raise problem


def frozen(part: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a frozen part, under our names; an autoencoder may be beside much else."""
    tensors = released.read(path)
    if part == "vae":
        pattern = r"^(first_stage_model\.)?(encoder|decoder|(post_)?quant_conv)\."
        tensors = {name: value for name, value in tensors.items() if re.match(pattern, name)}
    return released.translated(part, path, tensors)


def network(path: Path) -> dict[str, Tensor]:
    """The network of SVD's file, alone or with the rest of SVD, under our names."""
    tensors = released.renamed("keyframe", released.read(path))
    return {name: value for name, value in tensors.items() if name.startswith("unet.")}


def begin(stage: Stage, path: Path, given: dict[str, Tensor]) -> set[str]:
    """Puts SVD's network into a stage as it was initialised. What tells it of sound, emotion and
    mask is not SVD's: the label embedding's first matrix, and for interpolation the first
    convolution's, stay new, as do the parts that are KeyFace's own. Returns the names of what is
    new. Raises InputError where the network has other sizes."""
    ours = stage.state_dict()
    fresh = {name: value for name, value in ours.items()
             if name in NEW and (name not in given or given[name].shape != value.shape)}
    check_names(path, stage, {name: tuple(v.shape) for name, v in (given | fresh).items()})
    stage.load_state_dict(given | fresh)
    return fresh.keys()


def make(out: Path, config: Config, sources: dict[str, str], svd: str | None = None) -> None:
    """Writes the weights folder `out`: the frozen parts of `sources`, by name, and with `svd` both
    networks begun from there. config.json comes last: without it a half-written folder is none."""
    files = {part: locate(part, sources[part]) for part in config.frozen()}
    begun = locate("svd", svd) if svd else None
    tensors = {part: frozen(part, path) for part, path in files.items()}
    # An image autoencoder or a film's, with or without its last convolution.
    config = replace(config, vae=replace(
        config.vae, temporal=any("time_stack" in name for name in tensors["vae"]),
        post_quant_conv="post_quant_conv.weight" in tensors["vae"]))
    if svd:
        config = finetuned(config)
    with torch.device("meta"):
        model = KeyFace(config)
    for part, path in files.items():
        released.check_tensors(path, model.parts()[part], tensors[part])
    given = network(begun) if begun else {}
    make_folder(out)
    (out / "config.json").unlink(missing_ok=True)
    for part, path in files.items():
        header = {"config": asdict(config.vae)} if part == "vae" else {}
        floats = {name: value.float() for name, value in tensors[part].items()}
        save_part(out / f"{part}.safetensors", floats, half=False, source=path.name, **header)
        print(f"wrote    {out / part}.safetensors from {path}", flush=True)
    for part in ("keyframe", "interp") if begun else ():
        torch.manual_seed(0)
        stage = Stage(getattr(config, part))
        fresh = begin(stage, begun, given)
        save_part(out / f"{part}.safetensors", stage.state_dict(), half=False, source=begun.name)
        print(f"wrote    {out / part}.safetensors, begun from {begun}, but for "
              f"{', '.join(sorted(fresh))}", flush=True)
    save_config(config, out)


def published(args: argparse.Namespace, first: bool) -> None:
    """Puts a folder into the place of "svd" or "released" in --init. The `first` process makes it
    of the published files, beside weights/tiny, where it is not there yet. Raises InputError where
    these cannot be had."""
    name = str(args.init)
    if name not in PUBLISHED:
        return
    args.init = released.FOLDER.with_name(PUBLISHED[name])
    if first and not (args.init / "config.json").exists():
        config = finetuned(args.config or named_config("full"))
        if name == "svd":
            make(args.init, config, SOURCES | {"vae": released.SVD}, released.SVD)
        else:
            released.convert("released", args.init, torch.float32, config)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m tools.pretrained", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="weights folder to write")
    for part, source in SOURCES.items():
        add(f"--{part}", metavar="FROM", help=f"file, folder or name on the hub (default: "
            f"{source}{', with --svd that of SVD' * (part == 'vae')})")
    add("--svd", metavar="FROM", help=f"begin both networks as SVD's, such as {released.SVD}")
    add("--config", type=named_config, metavar="tiny|small|full|FILE.json",
        help="sizes (default: small, with --svd full)")
    args = parser.parse_args(argv)
    sources = {part: vars(args)[part] or (args.svd if part == "vae" and args.svd else source)
               for part, source in SOURCES.items()}
    make(args.out, args.config or named_config("full" if args.svd else "small"), sources, args.svd)


if __name__ == "__main__":
    sys.exit(run(main))
