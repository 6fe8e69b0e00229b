"""A walk through the running model: `python walk.py` writes walk/README.md and its pictures.

It follows one film, that of `python sample.py`, from the picture and the sound to the frames. Each
cell below is a stop: it computes and draws what that stop's text in walk/template.md tells. Numbers
in ⟨ ⟩ there are names from here, lines in ⟪ ⟫ are read from the modules (tools/page.py).
Editors that know cells (`# %%`) run them one by one, as a notebook, from the first on."""

# %% The film, made while we watch
import json
import runpy
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import diffusion
from audio import fbank
from keyface import KeyFace
from stage import Config, guided_keyframes
from tools import cli
from tools.checkpoint import load_metadata
from tools.media import FPS, SAMPLE_RATE, read_audio, read_image
from tools.page import BLUE, GREY, ORANGE, STYLE, Canvas, Page, colours, false_colours, fingerprint
from unet import sinusoid

if __name__ == "__main__" and "IPython" not in sys.modules:
    # As a command it runs under `cli.run`, which tells mistakes in one line; then it is done.
    sys.exit(cli.run(lambda given: cli.Parser("walk.py", description=__doc__).parse_args(given)
                     and runpy.run_path(__file__, run_name="walk")))

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
windows, groups = watched(model, "sample_keyframes"), watched(model, "sample_segments")
key_calls = watched(model.keyframe, "denoise")
good_calls, bad_calls = watched(model.interp, "denoise"), watched(model.interp_bad, "denoise")

face, wave = read_image(cli.IMAGE, config.size), read_audio(cli.AUDIO)
frames = np.stack(list(model.animate(face, wave, cli.EMOTION)))  # (N, H, W, 3) uint8

film, plan, N = windows[0][0][0], windows[0][0][0].plan, len(frames)
sigmas = diffusion.schedule(config.steps, config.keyframe.sigma_max)[:-1]  # those of evaluations
keys = torch.cat([latents for _, latents in windows])[: plan.keyframes]  # (K, C, h, w)

# Linear maps that say what lies open in tokens and latents, fitted by `python -m toy.readout`.
readouts = load_file(page.folder / "readouts.safetensors")
about = load_metadata(page.folder / "readouts.safetensors")
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


# %% 1. The picture becomes latents
identity = film.identity  # (1, C, h, w)
pixels = torch.from_numpy(face).permute(2, 0, 1)[None] / 127.5 - 1  # (1, 3, H, W)
back = model.vae.to_images(identity)
lost = (back - pixels).abs().mean(1)[0]  # (H, W)
worst = (back - pixels).square().mean(1).flatten().sort(descending=True).values
worst_share = (worst[: len(worst) // 10].sum() / worst.sum()).item()

canvas = Canvas(3.75)
canvas.tiles(0, 0.2, 2.15, [[colours(pixels)[0], colours(back)[0], false_colours(identity)[0]]],
             columns=["identity frame", "decoded again", "latents, in false colours"])
canvas.image(6.6, 0.2, 2.15, lost, cmap="magma", vmin=0, vmax=0.5)
canvas.text(7.68, 0.11, "what is lost, from 0 to 0.5", ha="center")
side = min(1.05, 8.75 / C - 0.05)
canvas.tiles((8.75 - C * (side + 0.05)) / 2, 2.6, side, [identity[0]],
             columns=[f"channel {c + 1}" for c in range(C)])
page.stop(1, "latents.webp", canvas)

# %% 2. The sound
tokens = model.audio(film.wave)  # (N, 2, D_a)
D_a, wavlm_width = tokens.shape[-1], config.audio.wavlm.hidden_size
rows = tokens.flatten(0, 1)  # (2 N, D_a), one every 20 ms
halves = {"WavLM": rows[:, :wavlm_width], "BEATs": rows[:, wavlm_width:]}
events = {name: read(x, f"events_{name.lower()}") for name, x in halves.items()}
laugh = (events["BEATs"].argmax(1) == about["events"].index("laugh")).nonzero()[:, 0] / (2 * FPS)
right = {name: f"{100 * value:.0f} %" for name, value in about["figures"].items()}

seconds = len(wave) / SAMPLE_RATE
canvas = Canvas(7.05)
canvas.track(0.05, 0.9, "spectrogram", fbank(film.wave[None])[0], seconds, "magma", 2, 20)
canvas.track(1.05, 0.7, "WavLM", halves["WavLM"], seconds)
canvas.track(1.85, 0.7, "BEATs", halves["BEATs"], seconds)
for i, name in enumerate(halves):
    axes = canvas.track(2.85 + 1.35 * i, 1.1, "", events[name], seconds, "Blues", 0, 1)
    canvas.text(0.85, 2.76 + 1.35 * i, f"What a linear read-out hears in {name}")
    axes.set_yticks(range(len(about["events"])), about["events"], fontsize=6)
axes.tick_params(labelbottom=True)

# The phonemes of the first sentences, written where they are heard.
seconds = 2.4
axes = canvas.axes(0.85, 5.65, 7.9, 1.0, xlim=(0, seconds), ylim=(-1, 2.2), yticks=[],
                   xlabel="seconds", ylabel="")
heard = wave[: round(seconds * SAMPLE_RATE)]
axes.plot(np.arange(len(heard)) / SAMPLE_RATE, heard / np.abs(heard).max(), color=GREY, lw=0.4)
for i, name in enumerate(halves):
    said = read(halves[name], f"phonemes_{name.lower()}").argmax(1).tolist()
    starts = [t for t in range(round(seconds * 2 * FPS)) if t == 0 or said[t] != said[t - 1]]
    for a, b in pairwise(starts):
        axes.text((a + b) / 4 / FPS, 1.8 - 0.6 * i, about["phonemes"][said[a]].replace("_", ""),
                  ha="center", va="center", color=(BLUE, ORANGE)[i])
    canvas.text(0.78, 5.78 + 0.19 * i, f"{name} says", ha="right", color=(BLUE, ORANGE)[i])
page.stop(2, "sound.webp", canvas)

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

canvas = Canvas(5.0)
seen = [false_colours(c * x[0, star]) for c, x in zip(c_in, noisy)]
canvas.tiles(0.85, 0.22, 1.26, [seen, colours(torch.cat([
    model.vae.to_images(d[0, star : star + 1]) for d in denoised]))], 0.06,
    [r"$c_\mathrm{in}\,x$", "D, decoded"], [rf"$\sigma$ = {sigma:.3g}" for sigma in levels])
fine = torch.logspace(-2, 2.5, 200)
axes = canvas.axes(0.85, 3.1, 7.9, 1.4, xscale="log", xlabel=r"$\sigma$", xlim=(0.01, 300),
                   yticks=(-1, 0, 1))
for name, values, colour in zip(("skip", "out", "in"), diffusion.scalings(fine),
                                ("black", ORANGE, BLUE)):
    axes.plot(fine, values, color=colour, label=rf"$c_\mathrm{{{name}}}$")
for sigma in levels:
    axes.axvline(sigma, color=GREY, lw=0.5, ls=":")
axes.axhline(0, color=GREY, lw=0.4)
axes.legend(ncols=3, loc="lower left")
page.stop(3, "noise.webp", canvas)

# %% 4. What the network is given
middle = len(sigmas) // 2  # a step of the sampler, half way
attention = model.keyframe.unet.middle_block[1].transformer_blocks[0].attn2
listening = watched(attention, "forward")
model.keyframe.denoise(noisy[2], levels[2:3], known)
queries, context = listening[0][0]  # (1, T h' w', C), (1, T, D_c)
q, k = (y.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)[0]  # (heads, T h' w' or T, d)
        for y in (attention.to_q(queries), attention.to_k(context)))
weights = (q @ k.mT / attention.head_dim**0.5).softmax(-1).mean(0)  # (T h' w', T)
weights = weights.unflatten(0, (T, -1)).mean(1)  # (frame, token)
share = weights.mean(0)  # (T,)
heavy, heavy_share = int((share > 1 / T).sum()), share[share > 1 / T].sum().item()

x, sigma, ends = good_calls[middle][0]  # the segments of the first group, (k, T, C, h, w)
given = model.keyframe.attach(c_in[2] * noisy[2], known.concat)  # (T, 2 C, h, w)
between = model.interp.attach(diffusion.scalings(sigma[0])[2] * x[star : star + 1],
                              ends.concat[star : star + 1])  # (T, 2 C + 1, h, w)
learned = model.interp.learned_mask

step, middle_frame, top = min(0.6, 7.9 / between.shape[1]), T // 2, 0.55
side = step - 0.04
canvas = Canvas(4.3 + 7 * step)
for title, tensor, which, names in (
        ("Keyframes", given, (star - 1, star, star + 1), ("noisy", "identity")),
        ("Interpolation", between, (0, 1, middle_frame, T - 1), ("noisy", "sequence", "M"))):
    canvas.tiles(0.85, top, side, tensor[list(which)], 0.04, [f"frame {i}" for i in which])
    canvas.text(0, top - 0.38, title, weight="bold")
    for i, name in enumerate(names):
        wide = 1 if name == "M" else C
        canvas.text(0.85 + (i * C + wide / 2) * step, top - 0.12, name, ha="center")
    top += len(which) * step + 0.6
for i, value in enumerate(between[[0, 1, middle_frame, T - 1], -1]):
    canvas.image(0.85 + 2 * C * step, top - 0.6 - (4 - i) * step, side, value, cmap="Greys",
                 vmin=-0.2, vmax=1.2)
canvas.tiles(3.9, top, side, [learned / learned.abs().max() * 2.5], 0.04)
canvas.text(3.9, top - 0.13, r"$z_\mathrm{m}$, scaled to its largest value")
axes = canvas.axes(0.85, top, 2.1, 2.1, xlabel="audio embedding", ylabel="frame",
                   xticks=range(0, T, 3), yticks=range(0, T, 3))
axes.imshow(weights, cmap="Blues", vmin=0)
canvas.text(0.85, top - 0.13, f"attention to the sound, 0 to {weights.max():.2f}")
page.stop(4, "inputs.webp", canvas)

# %% 5. The emotion
width = config.keyframe.unet.emotion_dim // 2
values = torch.linspace(-1, 1, 201)
sines = sinusoid(values, width)  # (201, width)
moving = int((sines.amax(0) - sines.amin(0) > 0.01).sum())
grades = torch.linspace(-1, 1, 5)
places = torch.arange(T) * 5 // T  # which of the five grades of arousal a keyframe has
emotion = torch.stack([grades.flip(0)[:, None].expand(5, T), grades[places].expand(5, T)], -1)
silence = model.audio.encode(torch.zeros(1), 0, T)[None].expand(5, -1, -1, -1)
told = model.keyframe.conditions(identity.expand(5, -1, -1, -1), silence, emotion)
calm = diffusion.seeded_noise(0, 0, 0, x0.shape).expand(5, -1, -1, -1, -1)
guided = guided_keyframes(model.keyframe.denoise, told, config.id_guidance, config.audio_guidance)
*_, moods = diffusion.sample(guided, calm, diffusion.schedule(6, config.keyframe.sigma_max))
chosen = [int((places == g).nonzero()[:, 0].median()) for g in range(5)]
moods = torch.stack([model.vae.to_images(row[chosen]) for row in moods])  # (5, 5, 3, H, W)

canvas = Canvas(5.6)
axes = canvas.axes(0.55, 0.3, 2.2, 4.81, xlabel="cosines, then sines", ylabel="valence v",
                   yticks=grades)
axes.imshow(sines, cmap="RdBu_r", aspect="auto", origin="lower", vmin=-1, vmax=1,
            extent=(-0.5, width - 0.5, -1, 1))
canvas.text(1.65, 0.18, r"$\gamma(v)$", ha="center")
canvas.tiles(3.9, 0.3, 0.93, colours(moods), 0.04, [f"{v:g}" for v in grades.flip(0)])
for i, grade in enumerate(grades):
    canvas.text(4.37 + 0.97 * i, 5.25, f"{grade:g}", ha="center")
canvas.text(3.35, 2.7, "valence", rotation=90, ha="center")
canvas.text(6.3, 5.45, "arousal", ha="center")
page.stop(5, "emotion.webp", canvas)

# %% 6. Training
sigma = torch.tensor(config.keyframe.p_mean).exp()
D = model.keyframe.denoise((x0 + sigma * noise)[None], sigma[None], known)[0]
by_row = diffusion.loss_weight(sigma) * (D - x0).square().mean((0, 1, 3))  # (h,)
quarters = torch.tensor([1, config.keyframe.lambda_eyes, *2 * [config.keyframe.lambda_lower]])
weighted = by_row * quarters.repeat_interleave(h // 4)
shares = [100 * v[h // 2 :].sum().item() / v.sum().item() for v in (by_row, weighted)]

canvas = Canvas(2.2)
error = (D - x0)[star].square().mean(0).sqrt()
canvas.tiles(0.05, 0.25, 1.6, [[*colours(model.vae.to_images(x0[star : star + 1])),
                               false_colours(x0[star] + sigma * noise[star]),
                               *colours(model.vae.to_images(D[star : star + 1]))]],
             columns=[r"$x_0$, decoded", r"$x_0 + \sigma n$", "D, decoded"])
canvas.image(5.0, 0.25, 1.6, error, cmap="magma", vmin=0, vmax=1)
canvas.text(5.8, 0.16, r"RMS of $D - x_0$, from 0 to 1", ha="center")
axes = canvas.axes(7.2, 0.25, 1.55, 1.6, ylim=(h - 0.5, -0.5), xlabel="loss", ylabel="row",
                   yticks=range(0, h, 4))
axes.barh(range(h), weighted, color=ORANGE, label="weighted")
axes.barh(range(h), by_row, color=BLUE, label="plain")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, fontsize=6)
page.stop(6, "training.webp", canvas)

# %% 7. Sampling keyframes
steps = len(sigmas)
xs = torch.cat([given[0][:1] for given, _ in key_calls[:steps]])  # (steps, T, C, h, w)
parts = torch.stack([out for _, out in key_calls[:steps]])  # (steps, 3, T, C, h, w)
weights = diffusion.keyframe_weights(film.id_guidance, film.audio_guidance)
Ds = torch.cat([diffusion.guide_keyframes(p, weights) for p in parts])
away = (Ds - Ds[-1]).square().mean((1, 2, 3, 4)).sqrt()  # (steps,)
settled = next(i for i in range(steps) if away[i] < away[0] / 2)

side = min(1.3, 8.15 / steps - 0.04)
canvas = Canvas(2 * side + 1.25)
guess = colours(model.vae.to_images(Ds[:, star]))
scaled = diffusion.scalings(sigmas)[2].float()[:, None, None, None] * xs[:, star]
canvas.tiles(0.62, 0.22, side, [false_colours(scaled), guess], 0.04,
             [r"$c_\mathrm{in}x$", "D"], [rf"{sigma:.3g}" for sigma in sigmas])
canvas.text(0.54, 0.13, r"$\sigma$ =", ha="right")
canvas.tiles(0.62, 2 * side + 0.6, 8.15 / T - 0.04, [colours(model.vae.to_images(x0))], 0.04,
             ["window"], [f"{i / FPS:.2f} s" for i in where])
page.stop(7, "sampling.webp", canvas)

# %% 8. Guidance
neither, told_id, told_both = parts.unbind(1)
sizes = [(b - a).square().mean((1, 2, 3, 4)).sqrt() for a, b in
         ((neither, told_id), (told_id, told_both))]
step = int(sizes[1].argmax())
three = [model.vae.to_images(d[step, star : star + 1])[0] for d in (neither, told_id, told_both)]
summed = model.vae.to_images(Ds[step, star : star + 1])[0]

canvas = Canvas(3.95)
canvas.tiles(0.05, 0.25, 1.6, [[colours(d) for d in three]], 0.15,
             columns=[r"$D_\varnothing$", r"$D_\mathrm{id}$", r"$D_\mathrm{id,aud}$"])
left, top = 0.05, 2.3
for sign, image, name in (
        ("", colours(three[0]), r"$D_\varnothing$"),
        (f"+ {film.id_guidance:g} ×", (three[1] - three[0]).mean(0),
         r"$D_\mathrm{id} - D_\varnothing$"),
        (f"+ {film.audio_guidance:g} ×", (three[2] - three[1]).mean(0),
         r"$D_\mathrm{id,aud} - D_\mathrm{id}$"),
        ("=", colours(summed), "D")):
    gap = 0 if not sign else 0.3 if sign == "=" else 0.62
    canvas.text(left + gap / 2 - 0.02, top + 0.8, sign, ha="center", fontsize=10)
    canvas.image(left + gap, top, 1.6, image, vmin=-0.8, vmax=0.8)
    canvas.text(left + gap + 0.8, top - 0.1, name, ha="center")
    left += gap + 1.6 + 0.03
axes = canvas.axes(6.1, 0.25, 2.65, 1.4, xscale="log", xlabel=r"$\sigma$", ylabel="RMS")
for name, size, colour in zip(("identity", "sound"), sizes, (BLUE, ORANGE)):
    axes.plot(sigmas, size, ".-", color=colour, label=f"what the {name} adds")
axes.invert_xaxis()
axes.legend()
page.stop(8, "guidance.webp", canvas)

# %% 9. The plan
K = plan.keyframes
unused = plan.windows * plan.per_window - K

canvas = Canvas(2.75)
span = plan.window(plan.windows - 1)[-1]
axes = canvas.axes(0.75, 0.75, 8.0, 1.6, xlim=(-4, span + 4), ylim=(0.3, 3.6), xlabel="video frame",
                   yticks=(3, 2, 1), yticklabels=("windows", "segments", "groups"))
at = axes.transData + canvas.figure.dpi_scale_trans.inverted()  # numbers to inches
for i, image in enumerate(colours(model.vae.to_images(keys))):
    canvas.image(at.transform((i * S, 0))[0] - 0.13, 0.1 + 0.3 * (i % 2), 0.27, image)
for i in range(plan.windows):
    placed, colour = plan.window(i), (BLUE, ORANGE)[i % 2]
    used = [frame for frame in placed if frame <= (K - 1) * S]
    axes.plot(placed, [3] * T, "-o", color=colour, mfc="white", ms=4, lw=0.8)
    axes.plot(used, [3] * len(used), "o", color=colour, ms=4)
for group in range(plan.groups):
    colour, written = (BLUE, ORANGE)[group % 2], plan.output_frames(group)
    for i, (first, last) in enumerate(plan.segments(group)):
        axes.plot((first, last), [2.13 - 0.26 * (i % 2)] * 2, color=colour, lw=3,
                  solid_capstyle="butt")
    axes.plot((written.start, written.stop - 1), (1, 1), color=colour, lw=7, solid_capstyle="butt")
    axes.text(written.start, 0.6, f"{len(written)} frames", va="center")
axes.plot((N - 1, N - 1), (1.3, 3.5), color=GREY, lw=0.8, ls="--")
axes.text(N + 2, 1.4, "the sound ends", color=GREY)
page.stop(9, "plan.webp", canvas)

# %% 10. Interpolation
levels = diffusion.schedule(film.steps, config.interp.sigma_max)[:-1]
bad, good = (torch.stack([out for _, out in calls[: len(levels)]]) for calls in
             (bad_calls, good_calls))  # (steps, k, T, C, h, w), of the first group
steered = diffusion.autoguide(bad, good, film.autoguidance)
step = int((good - bad).square().mean((1, 2, 3, 4, 5)).argmax())
gap = (good - bad)[step, star].square().mean((1, 2, 3)).sqrt()  # (T,)
odd = int(gap.argmax())

canvas = Canvas(4.75)
side = 7.9 / T - 0.04
told = model.interp.attach(torch.zeros_like(x0)[None], ends.concat[star : star + 1])[:, C : 2 * C]
which = sorted({0, len(levels) // 3, 2 * len(levels) // 3, len(levels) - 1})
canvas.tiles(0.85, 0.2, side, [colours(model.vae.to_images(d)) for d in (
    told, *steered[which, star])], 0.04,
    ["told", *(rf"$\sigma$ = {levels[i]:.3g}" for i in which)], [str(i) for i in range(T)])
pair = [model.vae.to_images(d[step, star, odd][None])[0] for d in (bad, good, steered)]
top = 0.2 + 5 * (side + 0.04) + 0.3
canvas.tiles(0.85, top, 1.3, [[colours(d) for d in pair]], 0.1,
             columns=["bad", "good", "guided"])
canvas.image(5.05, top, 1.3, (pair[1] - pair[0]).mean(0), vmin=-0.5, vmax=0.5)
canvas.text(5.7, top - 0.09, "good less bad", ha="center")
canvas.axes(6.85, top, 1.9, 1.0, xlabel="frame").bar(range(T), gap, color=BLUE)
canvas.text(7.8, top - 0.09, "good less bad, in size", ha="center")
page.stop(10, "interpolation.webp", canvas)

# %% 11. Shared frames and borders
apart = (steered[:, :-1, -1] - steered[:, 1:, 0]).square().mean((1, 2, 3, 4)).sqrt()  # (steps,)
latents = torch.cat([groups[0][1]] + [made[1:] for _, made in groups[1:]])[:N]  # (N, C, h, w)
change = (latents[1:] - latents[:-1]).square().mean((1, 2, 3)).sqrt()  # (N - 1,)
border = plan.stride
twice = [groups[0][1][-1], groups[1][1][0]]  # made by both groups
seam = (twice[0] - twice[1]).square().mean().sqrt().item()

canvas = Canvas(2.1)
axes = canvas.axes(0.65, 0.3, 2.5, 1.35, xscale="log", xlabel=r"$\sigma$", ylabel="RMS",
                   ylim=(0, 1.1 * apart.max()))
axes.plot(levels, apart, ".-", color=BLUE)
axes.invert_xaxis()
canvas.text(0.55, 0.15, "two guesses about a shared frame, difference")
axes = canvas.axes(3.75, 0.3, 4.9, 1.35, xlabel="video frame", ylabel="RMS", xlim=(0, N))
for i in range(K):
    axes.axvline(i * S, color=GREY, lw=0.5, ls=":")
axes.axvline(border, color=ORANGE)
axes.plot(np.arange(1, N), change, color=BLUE)
canvas.text(3.75, 0.15, "change from frame to frame; keyframes dotted, the border of groups orange")
page.stop(11, "borders.webp", canvas)

# %% 12. The film
jaw = read((latents - latents.mean(0)).flatten(1), "jaw")[:, 0]  # (N,)
power = np.resize(wave, (N, len(wave) // N)) ** 2
loud = torch.from_numpy(10 * np.log10(power.mean(1) + 1e-6)).float()
speaking = torch.corrcoef(torch.stack([jaw, loud]))[0, 1].item()

canvas = Canvas(2.85)
canvas.tiles(0.55, 0.05, 0.78, [frames[np.linspace(0, N, 10, endpoint=False, dtype=int)
                                       + N // 20]], 0.04)
for i, (name, values, colour) in enumerate((("loudness, dB", loud, GREY), ("jaw", jaw, BLUE))):
    axes = canvas.axes(0.55, 1.0 + 0.75 * i, 8.16, 0.65, xlim=(0, N / FPS), ylabel=name)
    axes.plot(np.arange(N) / FPS, values, color=colour)
    axes.tick_params(labelbottom=i == 1)
axes.set_xlabel("seconds")
page.stop(12, "jaw.webp", canvas)

# %% 13. Full size
full, names = Config(), ("shipped", "full size")
with torch.device("meta"):  # shapes without contents
    both = {name: KeyFace(c) for name, c in zip(names, (config, full))}
number = {name: {part: sum(p.numel() for p in module.parameters()) / 1e6
                 for part, module in m.parts().items()} for name, m in both.items()}


def route(stage) -> list[tuple[int, int]]:
    """(channels, side) of what each block of the network hands on."""
    found, c = [], stage.config
    unet, side = stage.unet, c.latent_shape[-1]
    for blocks in (unet.input_blocks, [unet.middle_block], unet.output_blocks):
        for block in blocks:
            block[-1].register_forward_hook(lambda _, given, out: found.append(out.shape[1:3]))
    with torch.device("meta"):
        unet(torch.zeros(T, c.unet.in_channels, side, side), torch.zeros(T),
             torch.zeros(1, T, c.unet.context_dim), torch.zeros(T, c.unet.emotion_dim), T)
    return found


routes = {name: route(m.keyframe) for name, m in both.items()}
tiny, large = number.values()

canvas = Canvas(2.3)
for i, (name, found) in enumerate(routes.items()):
    axes = canvas.axes(0.1 + 4.4 * i, 0.3, 4.2, 1.9, ylim=(-1.35, 1.35))
    axes.axis("off")
    most, sides = max(c for c, _ in found), max(s for _, s in found)
    for j, (channels, side) in enumerate(found):
        tall = side / sides
        axes.bar(j, 2 * tall, 0.85, -tall, color=BLUE, alpha=0.2 + 0.8 * channels / most)
        if not j or channels != found[j - 1][0]:
            axes.text(j, tall + 0.06, channels, ha="center", va="bottom", fontsize=7)
    for j in {0, len(found) // 2}:
        axes.text(j, -found[j][1] / sides - 0.06, f"{found[j][1]}²", ha="center", va="top",
                  fontsize=7)
    canvas.text(2.2 + 4.4 * i, 0.15, f"{name}: {number[name]['keyframe']:,.1f} M", ha="center")
page.stop(13, "sizes.webp", canvas)

# %% The film, and the page
first, *rest = [Image.fromarray(f).resize((192, 192), Image.LANCZOS) for f in frames[::2]]
with cli.replacing(page.folder / "film.webp") as new:
    first.save(new, save_all=True, append_images=rest, duration=2000 // FPS, loop=0, quality=70)
page.write()
