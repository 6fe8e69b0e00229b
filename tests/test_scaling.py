"""Sizes by name, frozen parts and networks from published files, and what a large training needs,
at tiny sizes under the published names; names and shapes at full size."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_keyface import shaken
from test_released import KEYS, Code, bare, hub, original, published, same, shapes, small  # noqa: F401
from test_training import frozen, train, windows  # noqa: F401
from huggingface_hub import errors

import train_interp
import train_keyframe
from keyface import KeyFace
from stage import Config, Stage
from tools import cli, pretrained, released, scaling
from tools.checkpoint import load_config, load_metadata, load_state, save_config, save_part
from tools.cli import InputError
from vae import VAE, VAEConfig

# ---- sizes --------------------------------------------------------------------------------------


def test_sizes_by_name():
    small, full = map(scaling.named_config, ("small", "full"))
    for stage in (small.keyframe, small.interp):
        with torch.device("meta"):
            count = sum(p.numel() for p in Stage(stage).parameters())
        assert 60e6 < count < 100e6
    assert small.size == 256 and small.keyframe.latent_shape == (4, 32, 32)
    assert (small.interp.interpolation, small.interp.unet.in_channels) == (True, 9)
    for stage in (full.keyframe, full.interp):
        stage.checkpoint_activations = False
    assert full == Config() and scaling.named_config("tiny") == Config.tiny()


@pytest.mark.parametrize("content, reason", [
    ('{"keyframe": {"unet": {"depth": 3}}}', "keyframe: unet: unknown field 'depth'"),
    ('{"size": 500}', "latent_shape does not fit the other fields"),
    ('{"keyframe": {"unet": {"num_groups": 7}}}', "num_channels.* divisible by num_groups"),
    ('{"keyframe": {"unet": {"num_head_channels": 60}}}', "num_head_channels does not fit"),
    ('{"interp": {"unet": {"channel_mult": [1, 1, 1, 1, 1, 1, 1, 1]}}}', "channel_mult does not"),
    ('{"keyframe": {"frames": "many"}}', 'frames: "many" does not fit'),
    ("[1]", "an object is expected"), ("{", "not readable as JSON")])
def test_configs_that_no_model_has(tmp_path, capsys, content, reason):
    path = tmp_path / "own.json"
    path.write_text(content)
    assert cli.run(train_keyframe.main, [f"--config={path}", "--describe"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(f"own.json: .*{reason}", said), said


def test_unknown_sizes(capsys):
    assert cli.run(train_interp.main, ["--config=smal", "--describe"]) == 2
    assert capsys.readouterr().err.endswith(
        'error: --config: "smal" is none of tiny, small, full, nor a JSON file\n')


def test_description(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = ["--config=tiny", "--describe", "--batch=4", "--accumulate=2", "--steps=3600"]
    assert cli.run(train_interp.main, asked) == 0
    said = capsys.readouterr().out
    assert said.startswith("interp: 2.5 M parameters, 2.5 M trained\n"
                           "memory of a process, 1 windows at a time: 0.")
    operations = float(re.search(r"process: (\S+) T a step", said)[1])
    hours = float(re.search(r"core .* ([\d.]+) hours", said)[1])
    assert hours == pytest.approx(operations / 0.04, abs=0.06)


# ---- what is there wins -------------------------------------------------------------------------


def test_a_config_file_decides_the_networks_alone(frozen, tmp_path, train):  # noqa: F811
    """Frozen parts stay what they are, and so does an --out that has a config.json."""
    path, out = tmp_path / "own.json", tmp_path / "out"
    config = load_config(Config, frozen)
    values = json.loads(json.dumps(asdict(replace(config, vae=VAEConfig(patch=2)))))
    values["keyframe"]["unet"]["context_dim"] = 40
    values["vae"] |= {"ch_mult": [1, 2], "patch": 2}
    path.write_text(json.dumps(values))
    state = train(train_keyframe, out, f"--config={path}", f"--init={frozen}", "--steps=1")
    assert state["stage"]["audio_proj.weight"].shape == (40, 128)
    made = load_config(Config, out)
    assert made.vae == config.vae and made.keyframe.unet.context_dim == 40
    with pytest.raises(InputError, match="out/config.json says otherwise, and what is there stays"):
        train(train_keyframe, out, "--config=tiny", "--steps=1")
    # Networks of other sizes are refused by name, frozen parts of other sizes, too.
    with pytest.raises(InputError, match="out/keyframe.safetensors: .* of another shape"):
        train(train_keyframe, tmp_path / "new", f"--init={out}", "--config=tiny", "--steps=1")
    with pytest.raises(InputError, match="--config: latent_shape does not .* python -m tools.pre"):
        train(train_keyframe, tmp_path / "new", f"--init={out}", "--config=small", "--steps=1")
    with pytest.raises(InputError, match="leave out --init and --config"):
        train(train_keyframe, out, "--resume", "--config=tiny")
