"""The statistics of bench/ on made-up curves, where the truth about their p-values is known; and
what the other scripts count, at small sizes."""

import re
import wave as wav_file

import numpy as np
import pytest
from conftest import small

import bench.sample
from bench import gpu_memory, unet
from bench.borders import means
from bench.hour import in_step
from bench.real_speech import loudness, main, p_value, pooled, turned
from tools import cli
from tools.describe import Training, taken
from tools.media import FRAME_SAMPLES, SAMPLE_RATE
from toy.evaluation.stats import change
from unet import UNet

SEEDS = 200


def slow(rng: np.random.Generator, n: int = 150) -> np.ndarray:
    """Noise that changes as slowly as a voice: syllables of about 0.2 s, phrases of a second."""
    return sum(np.convolve(rng.normal(size=n + k - 1), np.ones(k) / k**0.5, "valid")
               for k in (5, 25))


@pytest.mark.parametrize("sounds, reason", [
    (["voice.wav", "voice.wav"], "files: one is given twice"),
    (["short.wav"], "short.wav: 1.0 s are too few .*; give 3 s or more"),
    (["silence.wav"], "silence.wav: is silent; give"), (["none.wav"], "none.wav: no such"),
    (["voice.wav", "other/voice.wav"], "--out: a film in .* would overwrite")])
def test_recordings_that_cannot_be_judged(tmp_path, capsys, sounds, reason):
    (tmp_path / "other").mkdir()
    voice = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * SAMPLE_RATE)
    for name, wave in (("voice", voice), ("other/voice", voice), ("short", voice[:SAMPLE_RATE]),
                       ("silence", 0 * voice)):
        with wav_file.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((32767 * wave).astype("<i2").tobytes())
    argv = [str(tmp_path / name) for name in sounds]
    assert cli.run(main, [*argv, f"--out={tmp_path / 'films'}"]) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "warning:" not in line]  # silence is warned of
    assert len(lines) == 1 and re.search(reason, lines[0]), said
    assert not (tmp_path / "films").exists()


def test_a_correlation_with_every_turn():
    rng = np.random.default_rng(0)
    x, y = slow(rng), slow(rng)
    expected = [np.corrcoef(x, np.roll(y, k))[0, 1] for k in range(len(x))]
    assert turned(x, y) == pytest.approx(np.array(expected))
    still = turned(np.full(150, 0.3), y)
    assert still == pytest.approx(np.zeros(150)) and p_value(still) == 1


def test_a_jaw_that_follows_is_found():
    rng = np.random.default_rng(1)
    turns = [turned(y + slow(rng), y) for y in (slow(rng) for _ in range(20))]
    assert np.median([p_value(t) for t in turns]) < 0.03
    r, p = pooled(turns[:5])
    assert 0.5 < r < 0.9 and p < 0.001


def test_p_of_unrelated_curves_is_uniform_alone_and_pooled():
    rng = np.random.default_rng(2)
    turns = [[turned(slow(rng), slow(rng)) for _ in range(3)] for _ in range(SEEDS)]
    for p in (np.array([p_value(three[0]) for three in turns]),
              np.array([pooled(three, seed)[1] for seed, three in enumerate(turns)])):
        assert 0.4 < p.mean() < 0.6
        assert 0.01 < (p < 0.05).mean() < 0.1


def test_loudness_is_that_of_the_frame_and_of_vowels():
    time = np.arange(20 * FRAME_SAMPLES - 100) / SAMPLE_RATE
    tone, hiss = np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 6000 * time)
    at = np.arange(len(time)) // FRAME_SAMPLES
    curve = loudness((tone * (at == 7) + hiss * (at == 15)).astype(np.float32))
    assert len(curve) == 20 and curve.argmax() == 7 and curve[7] == 1
    assert curve[6] == pytest.approx(curve[8], rel=0.05) and curve[12:].max() < 0.1
    assert loudness(0.01 * tone) == pytest.approx(loudness(tone))        # of any level
    assert not loudness(np.zeros(16000, np.float32)).any()


def test_minutes_of_an_hour_that_are_in_step_and_late():
    rng = np.random.default_rng(3)
    first, last = slow(rng, 1500), slow(rng, 1500)
    rows = in_step([first + 0.3 * slow(rng, 1500), np.roll(last, 3)], [first, last])
    assert rows[0, 0] > 0.9 and rows[0, 2] == 0 and abs(rows[:, 1]).max() < 0.3
    assert rows[1, 0] < 0.9 and rows[1, 2] == 3


def test_a_jump_into_a_border_stands_out():
    levels = np.arange(40) + 5 * (np.arange(40) >= 20)      # a step of 1 a frame, of 6 to frame 20
    video = np.broadcast_to(levels[:, None, None, None], (40, 2, 2, 3)).astype(np.uint8)
    assert means(change(video), np.array([20])).tolist() == [3.5, 1]
    assert means(change(video), np.array([10])).tolist() == [1, 1]


def test_memory_is_predicted_as_a_cpu_counts_it(monkeypatch):
    monkeypatch.setattr(gpu_memory, "FILM", 14 * 640)       # two keyframes and what is between
    work, config = gpu_memory.sample, gpu_memory.small()    # in fewer layers, each takes its time
    config.size, config.interp_audio = 64, None
    for stage in (config.keyframe, config.interp):
        stage.latent_shape = (4, 8, 8)
        stage.unet.channel_mult, stage.unet.attention_resolutions = (1,), ()
    guess = gpu_memory.predicted(config, False, True, work, "cpu")[1]
    counted = gpu_memory.allocated(config, True, work)
    assert guess == pytest.approx(counted, rel=0.1)


def test_a_training_takes_what_is_described():
    """Counted without contents, and by the CPU's allocator in a real step: of a network whose
    layers are computed twice, so that little is kept of them."""
    spared = small()
    spared.keyframe.checkpoint_activations = True
    spared.keyframe.unet.channel_mult, spared.keyframe.unet.attention_resolutions = (1,), ()
    found = taken(spared, "keyframe", 2)

    def two_steps() -> None:
        training = Training(spared, "keyframe")
        for _ in range(2):
            training.passes(2)
            training.learn()

    assert found.bytes == pytest.approx(gpu_memory.grown(two_steps), rel=0.1)
    matrices, rest = (sum(p.numel() for p in group["params"])  # Muon keeps a mean, AdamW two
                      for group in Training(spared, "keyframe").optimizer.param_groups)
    assert found.optimizer == pytest.approx(4 * (matrices + 2 * rest), rel=0.01)
    assert found.gradients == 4 * found.trained == 4 * found.parameters


def test_networks_are_evaluated_as_often_as_the_method_needs(monkeypatch, capsys):
    monkeypatch.setattr(UNet, "forward", lambda self, x, *_: x[:, :self.config.out_channels])
    bench.sample.main(["--seconds=0.5", "--device=cpu"])
    figures = dict(pair.split("=") for pair in capsys.readouterr().out.split() if "=" in pair)
    assert figures["evaluations_per_second"] == figures["needed_per_second"] != "0"


def test_networks_do_no_more_than_those_of_diffusers():
    """Operations at a small size; ours are fewer, as diffusers repeats the sound for each pixel."""
    job = {"what": "forward", "small": True, "size": 8, "steps": 1, "device": "cpu",
           "runs": 1}
    ours, theirs = (unet.measure(job | {"side": side})["flops"] for side in unet.SIDES)
    assert 0.6 < ours / theirs < 1
