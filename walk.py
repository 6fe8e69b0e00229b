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

![The identity frame, the decoded picture, their difference, and the latent channels](latents.png)

In the channels you still recognise a face, because a latent pixel sees mainly the pixels in its
own place. In false colours, the first three channels as red, green and blue, we shall meet latents
all along the way. What comes back has ⟨decibels(back, pixels):.1f⟩ dB. The loss sits at edges: the
worst tenth of the pixels has ⟨100 * worst_share:.0f⟩ % of the squared error.
""")

canvas = Canvas(3.75)
canvas.tiles(0, 0.2, 2.15, [[colours(pixels)[0], colours(back)[0], false_colours(identity)[0]]],
             columns=["identity frame", "decoded again", "latents, in false colours"])
canvas.image(6.6, 0.2, 2.15, lost, cmap="magma", vmin=0, vmax=0.5)
canvas.text(7.68, 0.11, "what is lost", ha="center")
side = min(1.05, 8.75 / C - 0.05)
canvas.tiles((8.75 - C * (side + 0.05)) / 2, 2.6, side, [identity[0]],
             columns=[f"channel {c + 1}" for c in range(C)])
page.show("latents.png", canvas)

# %% 2. The sound
tokens = model.audio(film.wave)  # (N, 2, D_a)
D_a, wavlm_width = tokens.shape[-1], config.audio.wavlm.hidden_size
rows = tokens.flatten(0, 1)  # (2 N, D_a), one every 20 ms
halves = {"WavLM": rows[:, :wavlm_width], "BEATs": rows[:, wavlm_width:]}
events = {name: read(x, f"events_{name.lower()}") for name, x in halves.items()}
laugh = (events["BEATs"].argmax(1) == about["events"].index("laugh")).nonzero()[:, 0] / (2 * FPS)
right = {name: f"{100 * value:.0f} %" for name, value in about["figures"].items()}

page.tell(r"""
## 2. The sound becomes tokens

Two frozen encoders hear the recording. WavLM was made for speech: it tells what is said. BEATs was
made for everything else: it tells laughs, sighs, coughs. A video frame lasts 1/⟨FPS⟩ s, and each
encoder gives two tokens for it, 20 ms each. They are joined feature by feature, so frame $t$ has

```math
A_t = \begin{bmatrix} \mathrm{WavLM}_{2t} & \mathrm{BEATs}_{2t} \\
\mathrm{WavLM}_{2t+1} & \mathrm{BEATs}_{2t+1} \end{bmatrix} \in \mathbb{R}^{2 \times D_a},
\qquad a_t = W\,\tfrac12\,(A_{t,1} + A_{t,2}) + b
```

with $D_a =$ ⟨D_a⟩. The mean of the two goes through a single trained layer, $W$ and $b$, and the
result $a_t$ is all that the networks ever learn of the sound. It has width $D_c =$
⟨config.keyframe.unet.context_dim⟩.

⟪stage.py: tokens = audio_tokens.mean … context = self.audio_proj⟫

![Spectrogram, tokens of both encoders, and what linear read-outs hear in them](sound.png)

Why both? A read-out answers: it is one matrix, fitted to tokens of ⟨about["clips"]⟩ clips and
tried on ⟨about["unheard"]⟩ with other voices. In WavLM's tokens it names ⟨right["phonemes_wavlm"]⟩
of the phonemes, in BEATs' only ⟨right["phonemes_beats"]⟩. With the kind of sound it is the other way
round: ⟨right["events_wavlm"]⟩ and ⟨right["events_beats"]⟩. In our recording the one for BEATs hears
a laugh from ⟨laugh.min().item():.1f⟩ to ⟨laugh.max().item():.1f⟩ s. (`python -m toy.readout` fits
them.)
""")

seconds = len(wave) / SAMPLE_RATE
canvas = Canvas(6.7)
canvas.track(0.05, 0.9, "spectrogram", fbank(film.wave[None])[0], seconds, "magma", 2, 20)
canvas.track(1.05, 0.7, "WavLM", halves["WavLM"], seconds)
canvas.track(1.85, 0.7, "BEATs", halves["BEATs"], seconds)
for i, name in enumerate(halves):
    axes = canvas.track(2.75 + 1.2 * i, 1.1, f"{name} says\n\n\n", events[name], seconds, "Blues",
                        0, 1)
    axes.set_yticks(range(len(about["events"])), about["events"], fontsize=6)
axes.tick_params(labelbottom=True)

# The phonemes of the first sentences, written where they are heard.
seconds = 2.4
axes = canvas.axes(0.85, 5.5, 7.9, 1.0, xlim=(0, seconds), ylim=(-1, 2.2), yticks=[],
                   xlabel="seconds", ylabel="")
heard = wave[: round(seconds * SAMPLE_RATE)]
axes.plot(np.arange(len(heard)) / SAMPLE_RATE, heard / np.abs(heard).max(), color=GREY, lw=0.4)
for i, name in enumerate(halves):
    said = read(halves[name], f"phonemes_{name.lower()}").argmax(1).tolist()
    starts = [t for t in range(round(seconds * 2 * FPS)) if t == 0 or said[t] != said[t - 1]]
    for a, b in zip(starts, starts[1:]):
        axes.text((a + b) / 4 / FPS, 1.8 - 0.6 * i, about["phonemes"][said[a]].replace("_", ""),
                  ha="center", va="center", color=(BLUE, ORANGE)[i])
    canvas.text(0.78, 5.62 + 0.19 * i, f"{name} says", ha="right", color=(BLUE, ORANGE)[i])
page.show("sound.png", canvas)

# %% 3. Noise
x0, star = windows[0][1], int(read((keys - keys.mean(0)).flatten(1), "jaw")[:T].argmax())
where = plan.window(0)  # the video frames of the first window's keyframes
heard = model.audio.encode(film.wave, where[0], where[-1] + 1)[::S]  # (T, 2, D_a)
known = model.keyframe.conditions(identity, heard[None], film.emotion[where][None])
levels = torch.logspace(-1, np.log10(config.keyframe.sigma_max), 6)
noise = diffusion.seeded_noise(0, 2, 0, x0.shape)
noisy = [(x0 + sigma * noise)[None] for sigma in levels]  # 6 of (1, T, C, h, w)
denoised = [model.keyframe.denoise(x, sigma[None], known) for x, sigma in zip(noisy, levels)]
c_skip, c_out, c_in, _ = diffusion.scalings(levels)
true = model.vae.to_images(x0)
quality = [decibels(model.vae.to_images(d[0]), true) for d in denoised]

page.tell(r"""
## 3. Noise, and the network that takes it away

Diffusion learns to remove noise, at every level at once. Let $x_0$ be clean latents and $n$ unit
normal noise. At level $\sigma$ the noisy latents are $x = x_0 + \sigma n$, and the denoiser $D$ is
to give back $x_0$. It is not the bare network $F$ that does so, but

```math
D(x; \sigma) = c_\mathrm{skip}\,x + c_\mathrm{out}\,F(c_\mathrm{in}\,x,\; c_\mathrm{noise}), \qquad
c_\mathrm{skip} = \frac{1}{\sigma^2 + 1}, \quad c_\mathrm{out} = \frac{-\sigma}{\sqrt{\sigma^2 + 1}},
\quad c_\mathrm{in} = \frac{1}{\sqrt{\sigma^2 + 1}}, \quad c_\mathrm{noise} = \frac{\ln \sigma}{4}
```

Thanks to $c_\mathrm{in}$ the network sees numbers of the same size at every level. At low noise,
$c_\mathrm{skip}$ hands on $x$ itself and $F$ has only to correct it; at high noise $x$ is worthless
and $F$ has to say everything.

⟪diffusion.py: s2 = sigma**2 … c_noise = ⟫

![One latent at six noise levels, what the denoiser makes of each, and the three coefficients](noise.png)

The keyframe above is one that we shall meet being made. At $\sigma =$ ⟨levels[0].item():.1f⟩ the
denoised window has ⟨quality[0]:.1f⟩ dB against the clean one, at $\sigma =$
⟨levels[-1].item():.0f⟩ only ⟨quality[-1]:.1f⟩ dB. There the picture cannot come from $x$: it comes
from what the network is told, to which we turn now.
""")

canvas = Canvas(4.85)
seen = [false_colours(c * x[0, star]) for c, x in zip(c_in, noisy)]
canvas.tiles(0.85, 0.22, 1.26, [seen, colours(torch.cat([
    model.vae.to_images(d[0, star : star + 1]) for d in denoised]))], 0.06,
    [r"$c_\mathrm{in}\,x$", "D, decoded"], [rf"$\sigma$ = {sigma:.3g}" for sigma in levels])
fine = torch.logspace(-2, 2.5, 200)
axes = canvas.axes(0.85, 3.1, 7.9, 1.4, xscale="log", xlabel=r"$\sigma$", xlim=(0.01, 300))
for name, values, colour in zip(("skip", "out", "in"), diffusion.scalings(fine), (INK, ORANGE, BLUE)):
    axes.plot(fine, values, color=colour, label=rf"$c_\mathrm{{{name}}}$")
for sigma in levels:
    axes.axvline(sigma, color=GREY, lw=0.5, ls=":")
axes.axhline(0, color=GREY, lw=0.4)
axes.legend(ncols=3, loc="lower left")
page.show("noise.png", canvas)

# %% The page
pictures = [Image.fromarray(f).resize((192, 192), Image.LANCZOS) for f in frames[::2]]
pictures[0].save(page.folder / "film.webp", save_all=True, append_images=pictures[1:],
                 duration=2000 // FPS, loop=0, quality=70)
page.write()
