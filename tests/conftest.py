"""What several files of tests share: a small model, its frozen networks, films, their cache."""

import os

# Tests run two at a time, and some start processes of their own: each computes on one core. It is
# set before torch, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from keyface import KeyFace
from stage import Config
from tools import prepare
from tools.checkpoint import save_config, save_part
from tools.media import write_video
from unet import UNetConfig

# What takes long comes first, so that the two processes end at about the same time.
LONG = ("processes", "app", "training", "released", "sample", "weights", "bench", "keyface",
        "scaling")


def pytest_collection_modifyitems(items: list) -> None:
    names = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: names.get(item.path.stem, len(names)))


def small() -> Config:
    """The tiny model with smaller networks, for pictures of 32 x 32."""
    tiny = Config.tiny()
    unet = {"model_channels": 16, "channel_mult": (1, 2), "attention_resolutions": (2,),
            "num_groups": 4, "num_head_channels": 16, "context_dim": 24}
    common = {"latent_shape": (4, 8, 8)}
    return replace(
        tiny, size=32, vae=replace(tiny.vae, ch=4, num_groups=2),
        keyframe=replace(tiny.keyframe, unet=UNetConfig.tiny(**unet), pixel_share=1.0, **common),
        interp=replace(tiny.interp, **common,
                       unet=UNetConfig.tiny(in_channels=9, emotion_dim=0, **unet))).check()


@pytest.fixture(scope="session")
def frozen(tmp_path_factory) -> Path:
    """A folder with the frozen parts and config.json only, whose keyframe windows are short."""
    folder, config = tmp_path_factory.mktemp("frozen"), small()
    config.keyframe.frames = 4
    for stage in (config.keyframe, config.interp):  # one level and what is below it: fewer tensors
        stage.unet = replace(stage.unet, channel_mult=(1,), attention_resolutions=())
    torch.manual_seed(0)
    model = KeyFace(config)
    out = model.vae.encoder.conv_out  # its second half is the log-variance: a little noise only
    torch.nn.init.zeros_(out.weight[4:])
    torch.nn.init.constant_(out.bias[4:], -6)
    for name in config.frozen():
        save_part(folder / f"{name}.safetensors", model.parts()[name].state_dict())
    save_config(config, folder)
    return folder


def films(folder: Path, lengths: list[int], kinds: str = "") -> Path:
    """Videos 0.mp4, 1.mp4, ... whose frame t is grey of brightness 40 + 2 t, with valence t / 100
    in a table that has a row every fifth frame and at the end, and the same kind throughout: a
    letter each."""
    folder.mkdir(exist_ok=True)
    for number, n in enumerate(lengths):
        grey = (np.full((64, 64, 3), 40 + 2 * t, np.uint8) for t in range(n))
        tone = np.sin(np.arange(640 * n, dtype=np.float32) ** 1.2 / 99) / 4
        write_video(folder / f"{number}.mp4", grey, tone, 64)
        with open(folder / f"{number}.csv", "w", newline="") as file:
            kind, rows = kinds[number:number + 1], [*range(0, n - 1, 5), n - 1]
            csv.writer(file).writerows([["seconds", "valence", "arousal", "kind"],
                                        *([t / 25, t / 100, -0.5, kind] for t in rows)])
    return folder


@pytest.fixture(scope="session")
def cache(frozen, tmp_path_factory) -> Path:
    """A cache of five films, of which the first is held out."""
    folder = tmp_path_factory.mktemp("cache")
    source = prepare.Videos(films(folder / "films", [60, 45, 46, 47, 48]), 32)
    prepare.prepare(source, folder / "cache", frozen, workers=1)
    return folder / "cache"


def numbered(cache: Path, folder: Path) -> Path:
    """A copy of the cache, in which the latents (4, 8, 8) of the held-out film's frame t are t."""
    shutil.copytree(cache, folder)
    path = folder / "shards/0.mp4.000.safetensors"
    shard = load_file(path)
    shard["mean"] = torch.arange(60)[:, None, None, None].expand(60, 4, 8, 8).half().contiguous()
    shard["logvar"].fill_(-30)
    save_part(path, shard, half=False)
    return folder
