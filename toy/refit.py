"""Brings trained networks over to other audio encoders: `python -m toy.refit OLD NEW`.

NEW holds encoders that were trained on, and all else of a weights folder but the networks. Those of
OLD are written there with another `audio_proj`, the layer through which they hear: fitted by least
squares so that to the same sound it gives about the context that OLD's gave. From there their
training can go on (`--init NEW`) without learning to listen again.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from keyface import KeyFace
from tools.checkpoint import load_metadata, save_part
from tools.cli import InputError, Parser, number, run
from tools.media import FPS
from toy.world import kind_of, make_clip

NETWORKS = ("keyframe", "interp", "interp_bad")


def fit(old: Tensor, new: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, float]:
    """The layer of `new` features (N, D) that comes nearest to what weight (C, D) and bias (C,)
    make of the `old` (N, D): weight, bias, and R2, the share of the variance that it explains."""
    target = old.double() @ weight.double().T + bias.double()  # (N, C)
    mean, wanted = new.double().mean(0), target.mean(0)
    x, y = new.double() - mean, target - wanted
    # Features behind a layer norm depend on each other: without the ridge the layer would be a
    # difference of huge numbers, which float16 does not hold.
    gram = x.T @ x
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram, x.T @ y)  # (D, C)
    r2 = 1 - (x @ solution - y).square().sum() / y.square().sum()
    return solution.T.contiguous().float(), (wanted - mean @ solution).float(), r2.item()


@torch.no_grad()
def hear(folder: Path, clips: int, seconds: float = 8) -> Tensor:
    """What a weights folder's encoders make of clips of the training split: (frames, D)."""
    audio, heard = KeyFace.load_frozen(folder).audio, []
    for seed in range(clips):
        wave = make_clip(seed, "train", seconds, kind_of(seed)).wave
        heard.append(audio.encode(torch.from_numpy(wave), 0, round(seconds * FPS)).mean(dim=1))
    return torch.cat(heard)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m toy.refit", description=__doc__.split("\n\n")[0])
    parser.add_argument("old", metavar="OLD", type=Path, help="weights folder with networks")
    parser.add_argument("new", metavar="NEW", type=Path, help="weights folder with other encoders")
    parser.add_argument("--clips", type=number(int, 1, 10**5), default=150,
                        help="of 8 s, to fit on")
    args = parser.parse_args(argv)
    paths = [p for p in (args.old / f"{name}.safetensors" for name in NETWORKS) if p.exists()]
    if not paths:
        raise InputError(f"{args.old}: holds no network to bring over")
    old, new = hear(args.old, args.clips), hear(args.new, args.clips)
    for path in paths:
        tensors = load_file(path)
        layer = "audio_proj.weight", "audio_proj.bias"
        *values, r2 = fit(old, new, *(tensors[name] for name in layer))
        about = {k: json.loads(v) for k, v in load_metadata(path).items()}
        save_part(args.new / path.name, tensors | dict(zip(layer, values)), **about)
        print(f"{path.stem:12} R2 {r2:.3f}")


if __name__ == "__main__":
    sys.exit(run(main))
