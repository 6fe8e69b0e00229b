"""Fits the read-outs of the walk: `python -m toy.readout` writes walk/readouts.safetensors.

A read-out is a single linear map, fitted by ridge regression: what it can tell lies open in what it
reads. Phonemes and sound events are read from WavLM's tokens and from BEATs', the jaw from latents.
It learns from 100 clips of the train split, and how good it is, a share or a correlation, is
measured on 20 of the test split, whose voices and sentences it has never met. Run it anew when the
autoencoder or an encoder has changed.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keyface import KeyFace
from tools.checkpoint import save_part
from tools.cli import HERE, WEIGHTS, Parser, make_folder, run
from tools.page import fingerprint
from toy.faces import STATE
from toy.voices import PHONEMES
from toy.world import EVENTS, Clip, frames, kind_of, make_clip

CLIPS, UNHEARD, SECONDS = 100, 20, 8
EVERY = 8  # a picture is drawn of every eighth frame
JAW = STATE.index("jaw")


def ridge(x: Tensor, y: Tensor, penalty: float = 1.0) -> Tensor:
    """The W (D + 1, K) that makes [x, 1] W close to y, in the least squares: of rows x (n, D) and
    y (n, K), both of any float type; penalty |W|^2."""
    x = F.pad(x.double(), (0, 1), value=1)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ y.double()).float()


def read(x: Tensor, weight: Tensor) -> Tensor:
    """[x, 1] W: (n, D) -> (n, K)."""
    return x @ weight[:-1] + weight[-1]


@torch.no_grad()
def material(model: KeyFace, clips: list[Clip]) -> dict[str, Tensor]:
    """What the encoders make of the clips, and the truth beside it, in rows: `wavlm` and `beats`
    (n, C) with `phonemes` and `events` (n,), a row each 20 ms; `latents` (m, C h w) and `jaw` (m,)
    of some frames, both less their mean over the clip, so that the person counts for little."""
    found = {name: [] for name in ("wavlm", "beats", "phonemes", "events", "latents", "jaw")}
    for clip in clips:
        tokens = model.audio(torch.from_numpy(clip.wave).float()).flatten(0, 1)  # (2 N, D_a)
        speech, events = tokens.split((model.config.audio.wavlm.hidden_size,
                                       model.config.audio.beats.encoder_embed_dim), dim=1)
        seen = np.arange(0, len(clip.state), EVERY)
        latents = model.vae.to_latents(frames(clip, seen, model.size)).flatten(1)
        jaw = torch.from_numpy(clip.state[seen, JAW])
        for name, rows in {"wavlm": speech, "beats": events, "phonemes": clip.phoneme,
                           "events": clip.event.repeat(2), "latents": latents - latents.mean(0),
                           "jaw": jaw - jaw.mean()}.items():
            found[name].append(torch.as_tensor(rows))
    return {name: torch.cat(rows) for name, rows in found.items()}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m toy.readout", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="weights folder to read from")
    parser.add_argument("--out", type=Path, default=HERE / "walk", help="folder to write into")
    args = parser.parse_args(argv)
    make_folder(args.out)
    model = KeyFace.load(args.weights)
    heard, unheard = (material(model, [make_clip(seed, split, SECONDS, kind_of(seed))
                                       for seed in range(count)])
                      for split, count in (("train", CLIPS), ("test", UNHEARD)))

    weights, figures = {}, {}
    # Silence is easy to tell, and as an event so is speech: neither is counted.
    for what, classes, easy in (("phonemes", PHONEMES, PHONEMES.index("_")),
                                ("events", EVENTS, EVENTS.index("speech"))):
        for encoder in ("wavlm", "beats"):
            name = f"{what}_{encoder}"
            weights[name] = ridge(heard[encoder], F.one_hot(heard[what], len(classes)))
            there = unheard[what] > easy
            told = read(unheard[encoder][there], weights[name]).argmax(1)
            figures[name] = (told == unheard[what][there]).double().mean().item()
    weights["jaw"] = ridge(heard["latents"], heard["jaw"][:, None], 300.0)
    told = read(unheard["latents"], weights["jaw"])[:, 0]
    figures["jaw"] = torch.corrcoef(torch.stack([told, unheard["jaw"]]))[0, 1].item()

    save_part(args.out / "readouts.safetensors", weights, phonemes=PHONEMES, events=EVENTS,
              clips=CLIPS, unheard=UNHEARD, figures=figures, of=fingerprint(args.weights))
    for name, value in figures.items():
        print(f"{name:16} {value:.3f}")


if __name__ == "__main__":
    sys.exit(run(main))
