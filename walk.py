"""A walk through the running model: `python walk.py` writes walk/README.md and its pictures.

It follows one film, that of `python sample.py`, from the picture and the sound to the frames. Each
cell below is a stop: it computes, tells and draws. An editor that knows cells (`# %%`) runs them
one by one, as a notebook; start in the first. What is in ⟨ ⟩ in a text is computed here, and lines
in ⟪ ⟫ are read from the modules (tools/page.py).
"""

# %% The film, made while we watch
import json
import runpy
import sys

import matplotlib
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tools import cli

if __name__ == "__main__" and "IPython" not in sys.modules:
    # As a command it runs under `cli.run`, which tells mistakes in one line; then it is done.
    sys.exit(cli.run(lambda _: runpy.run_path(__file__, run_name="walk")))

import diffusion
from audio import fbank
from keyface import KeyFace
from stage import Config
from tools.checkpoint import load_metadata
from tools.media import FPS, SAMPLE_RATE, read_audio, read_image
from tools.page import (BLUE, GREY, INK, ORANGE, STYLE, Canvas, Page, colours, false_colours,
                        fingerprint)

torch.set_grad_enabled(False)
matplotlib.rcParams.update(STYLE)
page = Page(cli.HERE / "walk", globals())
cli.make_folder(page.folder)


def watched(owner, name: str) -> list:
    """From now on every call of owner.name is kept, as (what it was given, what it returned)."""
    method, calls = getattr(owner, name), []

    def call(*given):
        calls.append((given, method(*given)))
        return calls[-1][1]

    setattr(owner, name, call)
    return calls


model = KeyFace.load(cli.WEIGHTS)
config = model.config
T, S, (C, h, w) = config.keyframe.frames, config.keyframe.spacing, config.keyframe.latent_shape
model.batch = T  # all segments of a group go through the network in one call
windows, groups = watched(model, "keyframes"), watched(model, "frames_between")
key_calls = watched(model.keyframe, "denoise")
good_calls, bad_calls = watched(model.interp, "denoise"), watched(model.interp_bad, "denoise")

face, wave = read_image(cli.IMAGE, config.size), read_audio(cli.AUDIO)
frames = np.stack(list(model.animate(face, wave, cli.EMOTION)))  # (N, H, W, 3) uint8

film, plan, N = windows[0][0][0], windows[0][0][0].plan, len(frames)
sigmas = diffusion.schedule(config.steps, config.keyframe.sigma_max)[:-1]  # those of evaluations
keys = torch.cat([latents for _, latents in windows])[: plan.keyframes]  # (K, C, h, w)
for module, name in ((model, "keyframes"), (model, "frames_between"), (model.keyframe, "denoise"),
                     (model.interp, "denoise"), (model.interp_bad, "denoise")):
    delattr(module, name)  # nobody watches any more

# Linear maps that say what lies open in tokens and latents, fitted by `python -m toy.readout`.
readouts, about = (load(page.folder / "readouts.safetensors") for load in (load_file, load_metadata))
about = {name: json.loads(value) for name, value in about.items()}
if about["of"] != fingerprint(cli.WEIGHTS):
    cli.warn("walk/readouts.safetensors is of other weights; run: python -m toy.readout")


def read(x, name: str):
    """The read-out `name` of rows x (n, D): (n, K)."""
    weight = readouts[name].float()
    return x @ weight[:-1] + weight[-1]


def decibels(a, b) -> float:
    """Peak signal to noise ratio of pictures in [-1, 1]."""
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


page.tell("""
# A walk through KeyFace

One picture and one sound become a film. This walk follows the film of `python sample.py` all the
way: at each stop the equation of the [paper](https://arxiv.org/abs/2503.01715), the lines of this
project that compute it, and a picture of the tensors that were really there.

![The film of this walk: a drawn woman speaks and laughs](film.webp)

`python walk.py` has written this page and its pictures. The lines of code are read from the
modules, and each number is computed: in the film ⟨N⟩ frames of ⟨config.size⟩ × ⟨config.size⟩
pixels, with the shipped weights. The symbols are explained where they first appear, and the
[README](../README.md#map-of-the-code) has them all.
""")

# %% 1. The picture becomes latents
identity = film.identity  # (1, C, h, w)
pixels = torch.from_numpy(face).permute(2, 0, 1)[None] / 127.5 - 1  # (1, 3, H, W)
back = model.vae.to_images(identity)
lost = (back - pixels).abs().mean(1)[0]  # (H, W)
worst = lost.flatten().square().sort(descending=True).values
worst_share = (worst[: len(worst) // 10].sum() / worst.sum()).item()

page.tell(r"""
## 1. The picture becomes latents, and comes back

Diffusion on pixels is costly, and most of what pixels say is texture. So an autoencoder, trained
beforehand and frozen since, first makes the picture small. Its encoder $\mathcal E$ turns
the ⟨3 * config.size ** 2:,⟩ numbers of the identity frame $I$ into ⟨C * h * w:,⟩: $C =$ ⟨C⟩
channels of ⟨h⟩ × ⟨w⟩, each of which answers for a square of ⟨config.size // h⟩ × ⟨config.size // w⟩
pixels. Everything that is generated on this walk is generated here, and the decoder $\mathcal D$
makes pictures of it at the very end.

```math
z = \mathcal{E}(I), \qquad x = \frac{z - \mu}{s}, \qquad \hat I = \mathcal{D}(s\,x + \mu)
```

Noise of a known size means something only where the data have a known size. So each channel is
brought to mean zero and unit variance, by $\mu$ and $s$ of the training faces. (Stable Diffusion's
latents are multiplied by one number instead, ⟨Config().vae.scale_factor⟩.)

⟪vae.py: def scale( … return (z - mean)⟫

⟪vae.py: def to_latents … return self.scale(⟫

![The identity frame, its latent channels, the picture that comes back, and the error](latents.png)

In the channels you still recognise a face, because a latent pixel sees mainly the pixels in its
own place. In false colours, the first three channels as red, green and blue, we shall meet latents
all along the way. What comes back has ⟨decibels(back, pixels):.1f⟩ dB. The loss sits at edges: the
worst tenth of the pixels has ⟨100 * worst_share:.0f⟩ % of the squared error.
""")

side = min(1.0, 4.55 / C - 0.05)
canvas = Canvas(1.55)
canvas.image(0, 0.3, 1.2, colours(pixels)[0])
canvas.tiles(1.4, 0.3, side, [identity[0]], columns=[f"channel {c + 1}" for c in range(C)])
left = 1.4 + C * (side + 0.05) + 0.1
for image, name, style in (
        (false_colours(identity)[0], "false colours", {}), (colours(back)[0], "decoded", {}),
        (lost, "error", {"cmap": "magma", "vmin": 0, "vmax": 0.5})):
    canvas.image(left, 0.3, side, image, **style)
    canvas.text(left + side / 2, 0.21, name, ha="center")
    left += side + 0.05
page.show("latents.png", canvas)

# %%
Image.fromarray(frames[0])
pictures = [Image.fromarray(f).resize((192, 192), Image.LANCZOS) for f in frames[::2]]
pictures[0].save(page.folder / "film.webp", save_all=True, append_images=pictures[1:],
                 duration=2000 // FPS, loop=0, quality=70)
page.write()
