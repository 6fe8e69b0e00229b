"""The method against what can be computed by hand: plan, sampler, conditions and generator."""

import json
import math
from dataclasses import replace
from itertools import islice, pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small
from fixture import FOLDER

import diffusion
from diffusion import AYS, merge, sample, schedule, seeded_noise, share_ends
from keyface import Config, KeyFace, Plan
from stage import Conditions, Stage, guided_keyframes, guided_segments
from tools.cli import InputError
from vae import perceptual

TINY = Config.tiny()


def shaken(module: torch.nn.Module, leave: tuple[str, ...] = ()) -> None:
    """Adds noise to all parameters, since many start at zero, but not to those named in `leave`."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if not any(word in name for word in leave):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def stage(config, seed: int = 0, leave: tuple[str, ...] = ()) -> Stage:
    torch.manual_seed(seed)
    result = Stage(config).eval()
    shaken(result, leave)
    return result


def clips(b: int, t: int, config=TINY.keyframe) -> dict[str, torch.Tensor]:
    """Random x, sigma and inputs of `Stage.conditions` for b clips of t frames."""
    g = torch.Generator().manual_seed(1)
    ends = (2,) if config.interpolation else ()
    return {
        "x": 2 * torch.randn(b, t, *config.latent_shape, generator=g),
        "sigma": torch.rand(b, generator=g) + 1,
        "latents": torch.randn(b, *ends, *config.latent_shape, generator=g),
        "audio": torch.randn(b, t, 2, config.audio_dim, generator=g),
        "emotion": torch.rand(b, t, 2, generator=g) * 2 - 1,
    }


# ---- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dummy_first", [False, True])
def test_each_frame_has_its_place_in_the_plan(dummy_first):
    for n in range(1, 2001):
        plan = Plan(n, dummy_first=dummy_first)
        stop = next(k for k in range(0, 3000, 13) if k >= n - 1)
        keys = list(range(0, stop + 1, 13))
        assert plan.keyframes == len(keys)

        groups = [plan.segments(g) for g in range(plan.groups)]
        segments = [s for group in groups for s in group]
        assert segments == list(pairwise(keys)), n  # each frame in one segment but for shared ends
        assert all(groups) or n == 1
        windows = -(-len(keys) // plan.per_window)
        made = [plan.window(w) for w in range(windows)]
        assert all(len(w) == 14 for w in made)
        assert all(w[0] == 0 for w in made) or not dummy_first
        usable = [w[dummy_first:] for w in made]
        assert [f for w in usable for f in w][:len(keys)] == keys
        for group, window, following in zip(groups, usable, [*usable[1:], []]):
            assert {f for s in group for f in s} <= {*window, *following[:1]}, n
        assert plan.padded == made[-1][-1] + 1 >= n
        written = [plan.output_frames(g) for g in range(plan.groups)]
        assert [f for frames in written for f in frames] == list(range(n))
        for group, frames in zip(groups if n > 1 else [], written):
            assert group[0][0] <= frames[0] and frames[-1] <= group[-1][1], n


def test_plan_is_the_intended_one():
    for case in json.loads((FOLDER / "windows.json").read_text())["cases"]:
        intended = case["intended"]
        for dummy_first in (False, True):
            plan = Plan(case["N"], dummy_first=dummy_first)
            segments = [s for g in range(plan.groups) for s in plan.segments(g)]
            assert [list(s) for s in segments] == intended["segments"]
            assert [13 * k for k in range(plan.keyframes)] == intended["keyframe_frames"]
            assert segments[-1][1] + 1 == intended["frames_before_cut"]
            assert plan.output_frames(plan.groups - 1)[-1] + 1 == intended["cut_to"]


# ---- the sampler --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, levels", [(1, 1), (5, 5), (10, 11), (11, 11), (25, 25)])
def test_the_schedule_falls_from_sigma_max_to_zero(steps, levels):
    for high in (700.0, 80.0):
        sigmas = schedule(steps, high)
        assert len(sigmas) == levels + 1 and sigmas[-1] == 0
        assert (sigmas.diff() < 0).all()
        assert sigmas[0].item() == pytest.approx(high)
        if steps > 1:
            assert sigmas[-2].item() == pytest.approx(0.002)


def test_schedule_lies_on_the_table():
    table = torch.tensor(AYS, dtype=torch.float64)
    for steps in (10, 11):
        torch.testing.assert_close(schedule(steps)[:-1], table)
    double = schedule(21)[:-1]
    torch.testing.assert_close(double[::2], table)
    torch.testing.assert_close(double[1::2], (table[1:] * table[:-1]).sqrt())
    # Another sigma_max: the same shape in ln sigma.
    low, stretched = math.log(0.002), schedule(10, 80.0)[:-1].log()
    ratio = (stretched[:-1] - low) / (table.log()[:-1] - low)
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0].item()))


@pytest.mark.parametrize("steps", [1, 5, 10, 25])
def test_sampler_of_unit_normal_data(steps):
    """For x0 ~ N(0, 1), D = x / (1 + sigma^2): every step multiplies x by a known factor."""
    noise, sigmas = torch.randn(100, dtype=torch.float64), schedule(steps)
    factor = (1 + sigmas[0] ** 2).sqrt()
    states = list(sample(lambda x, s: x / (1 + s**2), noise, sigmas))
    assert len(states) == len(sigmas) - 1
    for x, (s, following) in zip(states, pairwise(sigmas)):
        factor = factor * (1 + s * following) / (1 + s**2)
        torch.testing.assert_close(x, noise * factor)


def test_sampler_converges_to_the_ode():
    """For x0 ~ N(m, d^2): x - m ~ sqrt(d^2 + sigma^2) on the flow; Euler's error is ~ 1/steps."""
    m, d, high = 0.7, 0.3, 80.0
    noise = torch.linspace(-3, 3, 61, dtype=torch.float64)
    start = noise * math.sqrt(1 + high**2)
    exact = m + (start - m) * d / math.sqrt(d**2 + high**2)
    errors = []
    for steps in (500, 1000):
        *_, x = sample(lambda x, s: (d**2 * x + s**2 * m) / (d**2 + s**2), noise,
                       schedule(steps, high))
        errors.append((x - exact).abs().max().item())
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_shared_ends_are_set_to_their_mean():
    x = torch.arange(12.0).view(3, 4, 1, 1, 1)
    shared = share_ends(x)
    assert shared.flatten().tolist() == [0, 1, 2, 3.5, 3.5, 5, 6, 7.5, 7.5, 9, 10, 11]
    assert x.flatten().tolist() == list(range(12))
    assert share_ends(shared).equal(shared) and share_ends(x[:1]).equal(x[:1])
    assert merge(x).flatten().tolist() == [0, 1, 2, 3.5, 5, 6, 7.5, 9, 10, 11]


def test_noise_of_another_seed_stage_or_window_is_another():
    rows = torch.stack([seeded_noise(*numbers, (10000,)) for numbers in product((0, 1), repeat=3)])
    assert rows.mean(1).abs().max() < 0.05 and (rows.std(1) - 1).abs().max() < 0.05
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 0.05
    assert seeded_noise(1, 0, 1, (10000,)).equal(rows[5])


# ---- the models ---------------------------------------------------------------------------------


@torch.no_grad()
def test_new_model_is_the_ideal_denoiser_of_unit_normal_data():
    new, c = Stage(TINY.keyframe), clips(2, 3)
    known = new.conditions(c["latents"], c["audio"], c["emotion"])
    expected = c["x"] / (1 + c["sigma"].view(2, 1, 1, 1, 1) ** 2)
    torch.testing.assert_close(new.denoise(c["x"], c["sigma"], known), expected)


@torch.no_grad()
def test_temporal_half_starts_as_the_identity():
    """Where all frames hear the same, clips equal single images until time is trained."""
    temporal = ("time_stack", "time_pos_embed", "time_mixer")
    model, c, t = stage(TINY.keyframe, leave=temporal), clips(2, 5), 5
    audio = c["audio"][:, :1].expand_as(c["audio"])
    known = model.conditions(c["latents"], audio, c["emotion"])
    clip = model.denoise(c["x"], c["sigma"], known)
    alone = Conditions(known.concat.repeat_interleave(t, 0),
                       known.context.flatten(0, 1)[:, None], known.emotion)
    images = model.denoise(c["x"].flatten(0, 1)[:, None], c["sigma"].repeat_interleave(t),
                           alone, spatial_only=True)
    torch.testing.assert_close(images[:, 0], clip.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert (clip - c["x"] / (1 + c["sigma"].view(2, 1, 1, 1, 1) ** 2)).abs().max() > 0.01
    shaken(model)
    moved = model.denoise(c["x"], c["sigma"], known)
    assert (model.denoise(c["x"][:, [1, 0, 2, 3, 4]], c["sigma"], known) - moved).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY.keyframe, TINY.interp], ids=["keyframe", "interp"])
def test_clips_of_a_batch_are_independent(config):
    model, c = stage(config), clips(3, 4, config)
    known = model.conditions(c["latents"], c["audio"], c["emotion"])
    together = model.denoise(c["x"], c["sigma"], known)
    for i in range(3):
        one = slice(i, i + 1)
        known = model.conditions(c["latents"][one], c["audio"][one], c["emotion"][one])
        alone = model.denoise(c["x"][one], c["sigma"][one], known)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


def test_a_step_of_training_draws_noise_levels_and_drops_conditions_as_configured():
    torch.manual_seed(0)
    config = replace(TINY.keyframe, p_mean=0.3, p_std=1.3, drop_identity=0.1, drop_audio=0.2)
    draws = Stage(config).draw((40000, 1, 1, 1, 1))
    level = draws.sigma.log()
    assert (level.mean() - 0.3).abs() < 0.03 and (level.std() - 1.3).abs() < 0.03
    assert (draws.keep_identity.mean() - 0.9).abs() < 0.01
    assert (draws.keep_audio.mean() - 0.8).abs() < 0.01
    rows = torch.stack([level, draws.keep_identity, draws.keep_audio, draws.noise.flatten()])
    assert (torch.corrcoef(rows) - torch.eye(4)).abs().max() < 0.03
    assert (draws.noise.std() - 1).abs() < 0.03


@torch.no_grad()
def test_a_step_of_training_denoises_what_is_drawn_with_what_is_kept():
    model, c = stage(TINY.keyframe), clips(2, 3)
    asked, denoised = [], torch.randn(2, 3, *TINY.keyframe.latent_shape)
    draws = model.draw(c["x"].shape)._replace(keep_identity=torch.tensor([1.0, 0.0]),
                                              keep_audio=torch.tensor([0.0, 1.0]))
    conditions = c["latents"], c["audio"], c["emotion"]
    model.denoise = lambda *given: asked.append(given) or denoised
    latent, _ = model(None, c["x"], *conditions, draws)
    [(x, sigma, known, _)] = asked
    expected = model.conditions(*conditions).keep(draws.keep_identity, draws.keep_audio)
    assert sigma.equal(draws.sigma) and all(a.equal(b) for a, b in zip(known, expected))
    for i in range(2):
        torch.testing.assert_close(x[i], c["x"][i] + draws.sigma[i] * draws.noise[i])
    loss = diffusion.latent_loss(denoised, c["x"], draws.sigma, TINY.keyframe.lambda_lower,
                                 TINY.keyframe.lambda_eyes)
    torch.testing.assert_close(latent, loss.mean())


def test_rows_of_eyes_and_of_the_mouth_have_weights_of_their_own():
    """Errors of 1 in one of eight rows, at sigma 1, where lambda(sigma) is 2."""
    errors = torch.eye(8).view(1, 8, 1, 8, 1).expand(1, 8, 4, 8, 8)      # frame t: row t
    loss = diffusion.latent_loss(errors, torch.zeros_like(errors), torch.ones(1), 3.0, 5.0)
    assert (loss * 8 / 2).tolist() == [[1, 1, 5, 5, 3, 3, 3, 3]]


@torch.no_grad()
def test_the_pixel_loss_is_that_of_one_decoded_frame_of_the_windows_that_have_a_picture():
    config = replace(TINY.keyframe, pixel_weight=0.5)
    model, c = stage(config), clips(2, 3)
    denoised = torch.randn(2, 3, *config.latent_shape)
    model.denoise = lambda *_: denoised
    model.distance = lambda vae, a, b: (a - b).abs().mean((1, 2, 3))
    vae = SimpleNamespace(to_images=lambda z: z[:, :3])
    draws, pixels = model.draw(c["x"].shape), torch.randn(1, 3, 16, 16)
    _, pixel = model(vae, c["x"], c["latents"], c["audio"], c["emotion"], draws, pixels, 2)
    error = denoised[:1, 2, :3] - pixels
    weight = 1 + draws.sigma[0] ** -2
    torch.testing.assert_close(pixel, 0.5 * weight * (error.square().mean() + error.abs().mean()))


def test_the_perceptual_distance_is_two_less_twice_the_cosine():
    """Of the features of each pixel, a mean over pixels and a sum over levels."""
    a, b = ([torch.randn(2, 5, side, side) for side in (8, 4)] for _ in range(2))
    found = {"a": a, "b": b}
    vae = SimpleNamespace(encoder=SimpleNamespace(levels=found.get))
    expected = sum(2 - 2 * torch.cosine_similarity(p, q).mean((1, 2)) for p, q in zip(a, b))
    torch.testing.assert_close(perceptual(vae, "a", "b"), expected)


@torch.no_grad()
def test_guidance_is_linear_and_computes_no_more_than_it_needs():
    model, c = stage(TINY.keyframe), clips(1, 3)
    known = model.conditions(c["latents"], c["audio"], c["emotion"])
    x, sigma = c["x"], c["sigma"][0]
    neither, identity, both = (
        model.denoise(x, c["sigma"], known.keep(*torch.tensor(kept)))
        for kept in ([[0.0], [0.0]], [[1.0], [0.0]], [[1.0], [1.0]]))
    assert min((neither - identity).abs().max(), (identity - both).abs().max()) > 1e-3
    clips_seen = []

    def denoise(x: torch.Tensor, *rest) -> torch.Tensor:
        clips_seen.append(len(x))
        return model.denoise(x, *rest)

    for w_id, w_audio, needed in ((0, 0, 1), (1, 0, 1), (1, 1, 1), (1, 3, 2), (2, 2, 2), (2, 5, 3)):
        expected = neither + w_id * (identity - neither) + w_audio * (both - identity)
        for batched in (True, False):
            guided = guided_keyframes(denoise, known, w_id, w_audio, batched=batched)
            torch.testing.assert_close(guided(x, sigma), expected, atol=1e-4, rtol=1e-4)
            assert sum(clips_seen) == needed
            clips_seen.clear()


@torch.no_grad()
def test_autoguidance_is_linear_whatever_the_batch():
    good, bad = stage(TINY.interp), stage(TINY.interp, seed=1)
    c = clips(3, 3, TINY.interp)
    known, bad_known = (m.conditions(c["latents"], c["audio"]) for m in (good, bad))
    levels = c["sigma"][:1].expand(3)
    d_good, d_bad = good.denoise(c["x"], levels, known), bad.denoise(c["x"], levels, bad_known)
    for batch in (1, 2, 4):
        guided = guided_segments(good.denoise, known, 1.5, bad.denoise, bad_known, batch)
        torch.testing.assert_close(guided(c["x"], c["sigma"][0]), d_bad + 1.5 * (d_good - d_bad),
                                   atol=1e-5, rtol=1e-5)
        plain = guided_segments(good.denoise, known, 1.0, pytest.fail, bad_known, batch)
        torch.testing.assert_close(plain(c["x"], c["sigma"][0]), d_good, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_interpolation_sees_ends_blend_and_mask():
    model, c, t = stage(TINY.interp), clips(2, 14, TINY.interp), 14
    known = model.conditions(c["latents"], c["audio"])
    rows = model.attach(c["x"], known.concat).unflatten(0, (2, t))
    start, end = c["latents"].unbind(1)
    assert rows[:, :, :4].equal(c["x"])
    assert rows[:, 0, 4:8].equal(start) and rows[:, -1, 4:8].equal(end)
    blend = rows[:, 1:-1, 4:8] - model.learned_mask
    for k in range(1, t - 1):
        torch.testing.assert_close(blend[:, k - 1], start + (end - start) * k / 13,
                                   atol=1e-5, rtol=1e-5)
    assert rows[:, [0, -1], 8].eq(1).all() and rows[:, 1:-1, 8].eq(0).all()


# ---- the generator ------------------------------------------------------------------------------


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


class Numbered:
    """Stands in for stages, hearing and autoencoder: a frame's latent is its sound's number.

    Of keyframes it checks that they are told the emotion of their own frame, MOOD times its number.
    """

    MOOD = np.array([1e-5, -1e-5])

    def __init__(self, frames: int):
        self.frames, self.drawn, self.largest_error, self.highest = frames, [], 0.0, 0.0

    def encode(self, wave, start, stop):
        assert 0 <= start < stop and len(wave)
        return torch.arange(float(start), stop).view(-1, 1, 1).expand(-1, 2, 1)

    def to_latents(self, pixels):
        return torch.zeros(1, 4, 16, 16)

    def to_images(self, latents):
        self.drawn += latents[:, 0, 0, 0].tolist()
        return torch.zeros(len(latents), 3, 1, 1)

    def conditions(self, latents, audio, emotion=None):
        if latents.dim() == 5:  # of segments: their ends were made for their first and last sound
            assert audio.shape[1] == 14
            error = latents[:, :, 0, 0, 0] - audio[:, [0, -1], 0, 0]
        else:  # what is told after the end is the last emotion
            number = audio[..., 0, 0].clamp(max=self.frames - 1)
            error = emotion / torch.from_numpy(self.MOOD) - number[..., None]
        self.largest_error = max(self.largest_error, error.abs().max().item())
        return Conditions(latents, audio[..., 0, :], None)

    def denoise(self, x, sigma, known):
        self.highest = max(self.highest, sigma.max().item())
        return known.context[..., None, None].expand_as(x)

    def film(self, model: KeyFace, **options):
        """The generator of `frames` frames made by it, in place of the parts of `model`, and the
        list of reports that it fills."""
        reports = []
        model.keyframe = model.interp = model.interp_bad = model.vae = self
        model.audio = model.interp_audio = self
        frames = model.animate(
            IMAGE, np.zeros(640 * self.frames - 639, np.float32),
            np.arange(self.frames)[:, None] * self.MOOD, id_guidance=1.0, audio_guidance=1.0,
            progress=lambda *report: reports.append(report), **options)
        return frames, reports


@pytest.mark.parametrize("dummy_first", [False, True])
def test_every_frame_is_made_for_its_own_sound(dummy_first):
    """For every kind of ending: within a segment, on a keyframe, on either side of a window."""
    config = Config.tiny()
    config.dummy_first = dummy_first
    model = KeyFace(config)
    for n in (1, 2, 13, 14, 15, 27, 28, 169, 170, 171, 182, 183, 184, 196, 339, 366):
        double = Numbered(n)
        frames, reports = double.film(model, steps=2)
        assert len(list(frames)) == n
        assert np.abs(np.array(double.drawn) - np.arange(n)).max() < 0.01, n
        assert double.largest_error < 0.01, n
        assert double.highest == pytest.approx(TINY.keyframe.sigma_max)  # of both stages
        for name in {r[0] for r in reports}:
            done = [r[1] for r in reports if r[0] == name]
            total = {r[2] for r in reports if r[0] == name}
            assert done == sorted(set(done)) and {done[-1]} == total, n


def test_an_hour_starts_at_once_and_stays_in_step():
    """Its frames come as groups are done, the first after two windows and one group; those of its
    last minute are made for their own sound and emotion."""
    double, model = Numbered(3600 * 25), KeyFace(TINY)
    frames, reports = double.film(model, steps=1)
    next(frames)
    started = [("keyframes", 1, 495), ("keyframes", 2, 495), ("frames", 14, 6923)]
    assert reports == started
    assert len(list(islice(frames, 14 * 13))) == 182 and reports == started
    next(frames)
    assert reports[3:] == [("keyframes", 3, 495), ("frames", 28, 6923)]
    assert np.rint(double.drawn[:183]).tolist() == list(range(183))

    double.drawn.clear()
    frames, reports = double.film(model, steps=1, start=3540 * 25)
    assert sum(1 for _ in frames) == 60 * 25 and reports[-1] == ("frames", 6923, 6923)
    assert np.rint(double.drawn[-60 * 25:]).tolist() == list(range(3540 * 25, 3600 * 25))
    assert double.largest_error < 0.1


def random_model(config: Config) -> KeyFace:
    torch.manual_seed(0)
    model = KeyFace(config)
    for part in model.parts().values():
        shaken(part.eval())
    return model


@pytest.fixture(scope="module")
def brief():
    """A model whose groups are of 12 frames, and whose chunks of sound begin every 16 frames."""
    config = small()
    config.keyframe.frames = config.interp.frames = 4
    config.keyframe.spacing = 3
    config.audio = replace(config.audio, chunk_frames=24, overlap_frames=8)
    return random_model(config)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(16000 * seconds))).astype(np.float32)


def test_a_film_has_the_settings_that_were_asked_for(brief, monkeypatch):
    films = []
    monkeypatch.setattr(KeyFace, "sample_keyframes",
                        lambda _, film, __: films.append(film) or 1 / 0)
    asked = {"steps": 3, "id_guidance": 1.5, "audio_guidance": 2.5, "autoguidance": 3.5, "seed": 7}
    own = {name: getattr(brief.config, name, 0) for name in asked}  # seed 0
    for settings, expected in (({}, own), (asked, asked)):
        with pytest.raises(ZeroDivisionError):
            next(brief.animate(np.zeros((64, 64, 3), np.uint8), sound(0.1), **settings))
        assert {name: getattr(films[-1], name) for name in asked} == expected


def test_length_seed_and_repeatability():
    model = random_model(small())

    def film(seconds, seed):
        return np.stack(list(model.animate(IMAGE, sound(seconds), steps=1, seed=seed)))

    for seconds, count in ((0.04, 1), (0.041, 2), (1.0, 25)):
        first = film(seconds, 0)
        assert first.shape == (count, 32, 32, 3) and first.dtype == np.uint8
        assert np.array_equal(first, film(seconds, 0))
        assert not np.array_equal(first, film(seconds, 1))
        assert count == 1 or (first[1:] != first[:-1]).any((1, 2, 3)).all()


@pytest.mark.parametrize("average_shared", [False, True])
def test_copies_of_a_shared_frame_are_averaged_at_each_step_or_only_at_the_end(
        brief, monkeypatch, average_shared):
    """In the former case they are equal at each step: their noise is the same, too."""
    monkeypatch.setattr(brief, "config", replace(brief.config, average_shared=average_shared))
    asked, denoise = [], brief.interp.denoise
    monkeypatch.setattr(brief.interp, "denoise",
                        lambda x, *given: asked.append(x) or denoise(x, *given))
    list(brief.animate(IMAGE, sound(0.5), steps=3))
    apart = [(x[:-1, -1] - x[1:, 0]).abs().max().item() for x in asked]
    assert len(apart) == 3 and (max(apart) == 0 if average_shared else min(apart) > 0.01)


def test_each_window_and_segment_has_its_own_noise_and_each_network_its_conditions(brief,
                                                                                   monkeypatch):
    """Of two windows of keyframes (stage 0) and six segments (stage 1), in two groups; the bad
    model has audio projections of its own."""
    drawn, levels, config = [], [], brief.config
    bad = stage(config.interp, seed=7)
    monkeypatch.setattr(brief, "interp_bad", bad)
    monkeypatch.setattr(brief, "config", replace(
        config, interp=replace(config.interp, sigma_max=70.0)))
    noise, schedule = diffusion.seeded_noise, diffusion.schedule
    monkeypatch.setattr(diffusion, "seeded_noise",
                        lambda *asked: drawn.append(asked[:3]) or noise(*asked))
    monkeypatch.setattr(diffusion, "schedule",
                        lambda *asked: levels.append(asked) or schedule(*asked))
    known = {}
    for name, one in (("good", brief.interp), ("bad", bad)):
        def conditions(*asked, name=name, make=one.conditions):
            known.setdefault(name, []).append(make(*asked))
            return known[name][-1]

        def denoise(x, sigma, given, name=name, run=one.denoise):
            own, other = known[name][-1], known["bad" if name == "good" else "good"][-1]
            rows = given.context.flatten()
            assert torch.isin(rows, own.context).all()
            assert not torch.isin(rows, other.context).all()
            return run(x, sigma, given)

        monkeypatch.setattr(one, "conditions", conditions)
        monkeypatch.setattr(one, "denoise", denoise)
    assert len(list(brief.animate(IMAGE, sound(0.72), steps=1, seed=5, autoguidance=2.0))) == 18
    assert [asked for asked in drawn if asked[1] == 0] == [(5, 0, i) for i in range(2)]
    assert [asked for asked in drawn if asked[1] == 1] == [(5, 1, i) for i in range(6)]
    assert set(levels) == {(1, config.keyframe.sigma_max), (1, 70.0)} and levels[0][1] != 70
    assert len(known["bad"]) == len(known["good"]) == 2


def test_a_longer_sound_begins_with_the_same_film(brief):
    """What comes after the next window and its last chunk of sound changes nothing: three
    groups of 12 frames hear window 3, which ends at frame 45, and chunks that end 24 frames later,
    before 3 s."""
    shared = sound(3)
    films = [list(islice(brief.animate(
        IMAGE, np.concatenate([shared, sound(seconds, seed)]), f"0:happy 3:happy 4:{emotion}",
        steps=1), 36)) for seconds, seed, emotion in ((1, 1, "sad"), (3, 2, "excited"))]
    assert np.array_equal(*films)


def test_a_film_started_late_is_the_rest_of_it(brief):
    """On both sides of a border of groups, and within a group."""
    wave = sound(1.6)
    whole = list(brief.animate(IMAGE, wave, "0:sad 1:happy", steps=1))
    assert len(whole) == 40
    for start in (12, 13, 20):
        rest = list(brief.animate(IMAGE, wave, "0:sad 1:happy", steps=1, start=start))
        assert np.array_equal(rest, whole[start:]), start
    for start in (-1, 40):
        with pytest.raises(InputError, match="start: .*; the video has frames 0 to 39"):
            next(brief.animate(IMAGE, wave, start=start))


def test_settings_that_cannot_be_used_are_refused(brief):
    for settings in ({"steps": 0}, {"seed": -1}, {"id_guidance": math.nan},
                     {"audio_guidance": math.inf}, {"autoguidance": math.nan}):
        with pytest.raises(InputError, match="at least 1|must be finite"):
            next(brief.animate(IMAGE, sound(0.1), **settings))
