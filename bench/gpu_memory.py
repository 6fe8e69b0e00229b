"""What sampling at the released size takes of a GPU's memory. `python bench/gpu_memory.py`

Runs the sampler itself on tensors without contents and adds up the storage that is alive after each
operation, so it needs no GPU. Of what an operation takes for itself while it runs only the largest
is known: convolutions copy an input that is not channels-last. What is missed is measured first: a
small model is sampled on the CPU, and the peak so predicted compared with the allocator's own
count. Where there is a GPU the full size is measured there as well.

The networks and the autoencoder are in bfloat16, everything else in float32. The peak does not
depend on the number of steps, nor, beyond one batch of segments, on the film's length; that of the
encoders depends on the recording's, up to the longest that is heard whole.
"""

import argparse
import json
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# In front: this folder has files named like the modules that they measure.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audio
from audio import AudioConfig
from keyface import Config, KeyFace
from media import FRAME_SAMPLES, SAMPLE_RATE
from unet import UNetConfig
from vae import VAEConfig

# Five keyframes, so a window of them, a whole batch of segments between, and batches to decode.
FILM = 53 * FRAME_SAMPLES


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations return, until they are freed: `now` and `peak` bytes."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        copy = 0
        if func is torch.ops.aten.convolution.default:
            last = torch.channels_last if args[0].ndim == 4 else torch.channels_last_3d
            if args[0].ndim > 3 and not args[0].is_contiguous(memory_format=last):
                copy = args[0].nbytes
        self.peak = max(self.peak, self.now + copy)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:        # else a view of one that is counted
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def place(module: nn.Module, device: str) -> None:
    """Gives a module without storage zeros on the device; without contents under fake tensors."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                zeros = torch.zeros_like(value, device=device)
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else torch.zeros_like(value, device=device)


def in_bfloat16(module: nn.Module) -> None:
    """Runs a module in bfloat16, between float32 in and out; noise levels stay as they are."""
    def to_half(_, args):
        return tuple(x.bfloat16() if isinstance(x, Tensor) and x.ndim > 1 else x for x in args)

    module.bfloat16()
    module.register_forward_pre_hook(to_half)
    module.register_forward_hook(lambda _, args, result: result.float())


def build(config: Config, half: bool) -> KeyFace:
    """A model without storage."""
    with torch.device("meta"):
        model = KeyFace(config)
    if half:
        for module in (model.keyframe.unet, model.interp.unet, model.interp_bad.unet,
                       model.vae.encoder, model.vae.decoder):
            in_bfloat16(module)
    return model


def sample(model: KeyFace) -> None:
    """A film, in as few steps as can be."""
    image = np.zeros((model.size, model.size, 3), np.uint8)
    for _ in model.animate(image, np.zeros(FILM, np.float32), steps=1):
        pass


def listen(model: KeyFace) -> None:
    """The encoders' work on the longest recording that they hear whole."""
    length = round(model.config.audio.max_whole_seconds * SAMPLE_RATE)
    model.audio.encode(torch.zeros(length, device=model.device), 0, model.config.keyframe.frames)


def predicted(config: Config, half: bool, work: Callable[[KeyFace], None]) -> tuple[int, int]:
    """Bytes of the weights, and what the peak of `work` adds to them, without running any of it."""
    model, live = build(config, half), LiveBytes()
    audio._mel_triangles.cache_clear()              # no real table in there, and no fake one after
    fake_numpy = patch.object(FakeTensor, "numpy", lambda x: np.zeros(x.shape, np.uint8))
    with FakeTensorMode(allow_non_fake_inputs=True), live, fake_numpy:
        for part in model.parts().values():
            place(part, "cpu")
        weights = live.now
        work(model)
    audio._mel_triangles.cache_clear()
    return weights, live.peak - weights


def allocated(config: Config, half: bool, work: Callable[[KeyFace], None]) -> int:
    """What the peak of `work` adds to the weights, measured: the CPU allocator's own count."""
    model = build(config, half)
    for part in model.parts().values():
        place(part, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    # The count begins with the record, when the weights are there.
    return max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")


def allocated_on_gpu(config: Config, half: bool, work: Callable[[KeyFace], None]) -> int:
    """The same on the GPU."""
    model = build(config, half)
    model.device = torch.device("cuda")
    for part in model.parts().values():
        place(part, "cuda")
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work(model)
    return torch.cuda.max_memory_allocated() - weights


def small() -> Config:
    """Shaped like the released model, and quick."""
    sizes = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1,
             "attention_resolutions": (1, 2)}
    stage = {"latent_shape": (4, 16, 16), "audio_dim": AudioConfig.tiny().width}
    config, hearing = Config.full(), replace(AudioConfig.tiny(), mapping="released")
    return replace(
        config, size=128, vae=VAEConfig(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1),
        keyframe=replace(config.keyframe, unet=UNetConfig(**sizes), **stage),
        interp=replace(config.interp, **stage,
                       unet=UNetConfig(in_channels=9, emotion_dim=0, **sizes)),
        audio=hearing, interp_audio=replace(hearing, speech="wav2vec2"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    gb = 1e9
    guess, truth = predicted(small(), False, sample)[1], allocated(small(), False, sample)
    print(f"small model on the CPU, float32: predicted {guess / 1e6:.1f} MB above the weights, "
          f"allocated {truth / 1e6:.1f} MB ({guess / truth - 1:+.1%})")
    figures = {"predicted_to_allocated": guess / truth}

    works = {"sampling": sample, "longest recording heard whole": listen}
    peaks = []
    for name, work in works.items():
        weights, extra = predicted(Config.full(), True, work)
        peaks.append(weights + extra)
        print(f"{name}, bfloat16: weights {weights / gb:.2f} GB + {extra / gb:.2f} GB", end="")
        if torch.cuda.is_available():
            measured = allocated_on_gpu(Config.full(), True, work)
            figures[f"gpu_{work.__name__}_gb"] = (weights + measured) / gb
            print(f", measured {measured / gb:.2f} GB", end="")
        print(flush=True)
    figures |= {"weights_gb": weights / gb, "sample_gb": peaks[0] / gb, "listen_gb": peaks[1] / gb}
    print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
