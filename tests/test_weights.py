"""The shipped weights: small, complete, readable without pickle, and they listen."""

from pathlib import Path

import numpy as np
import pytest

from checkpoint import load_metadata
from keyface import KeyFace
from media import read_audio, read_image

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights" / "tiny"


@pytest.fixture(scope="module")
def model():
    return KeyFace.load(WEIGHTS)


def test_folder_is_whole_and_small(model):
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    parts = {f"{name}.safetensors" for name in model.parts()}
    assert set(sizes) >= {"config.json", "README.md"} | parts
    assert model.interp_bad is not None
    assert sum(sizes.values()) < 20e6
    for name in ("keyframe", "interp", "interp_bad"):
        assert {"config", "step", "version"} <= set(load_metadata(WEIGHTS / f"{name}.safetensors"))


def test_the_face_is_kept_and_the_mouth_follows_the_sound(model):
    """Frames stay near the identity picture; the mouth moves with a voice, not without."""
    identity = read_image(ROOT / "assets" / "face.png", model.size)
    wave = read_audio(ROOT / "assets" / "speech.flac")[:32000]
    spoken = np.stack(list(model.animate(identity, wave, seed=0))).astype(np.float32)
    silent = np.stack(list(model.animate(identity, np.zeros_like(wave), seed=0))).astype(np.float32)
    assert spoken.shape == (50, model.size, model.size, 3)
    assert np.abs(spoken - identity).mean() < 20  # of 255; 60 other people are 45 to 113 from it
    rows, columns = slice(36, 58), slice(18, 46)  # of 64: the mouth
    motion, stillness = (np.abs(np.diff(film[:, rows, columns], axis=0)).mean()
                         for film in (spoken, silent))
    assert motion > 2 * stillness
