"""What sampling at the released size takes of a GPU's memory. `python bench/gpu_memory.py`

Runs the sampler itself on tensors without contents, as if on a GPU, and adds up the storage on it
that is alive after each operation, so it needs none. Of what an operation takes for itself while it
runs only the largest is known: convolutions copy an input that is not channels-last. What is missed
is measured first: a small model is sampled on the CPU, and the peak so predicted compared with the
allocator's own count. Where there is a GPU the full size is measured there as well.

All of it twice: as it is, and with `--low-memory`, where weights come and go. On a CPU there is
nowhere to go, so of the small model with `--low-memory` it is the rest that is compared: guidance
one evaluation after the other, segments and images one at a time.

The networks are in bfloat16, all else in float32, as tools/released.py has them. The peak does not
depend on the number of steps, nor, beyond one batch of segments, on the film's length; that of the
encoders depends on the recording's, up to the longest that is heard whole. What CUDA itself and its
libraries take comes on top.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

# In front: this folder has files named like the modules that they measure.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audio
from audio import AudioConfig
from keyface import Config, KeyFace
from tools import cli
from tools.describe import LiveBytes
from tools.media import FRAME_SAMPLES, SAMPLE_RATE
from unet import UNetConfig
from vae import VAEConfig

# Five keyframes, so a window of them, a whole batch of segments between, and batches to decode.
FILM = 53 * FRAME_SAMPLES


def place(module: nn.Module, device: str | torch.device) -> None:
    """Gives a module zeros on the device, in place of what it has; under fake tensors without
    contents."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                zeros = torch.zeros_like(value, device=device)
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else torch.zeros_like(value, device=device)


def move(module: nn.Module, device: str | torch.device) -> None:
    """`Module.to`, which cannot exchange fake tensors."""
    if next(module.parameters()).device.type != torch.device(device).type:
        place(module, device)


def build(config: Config, half: bool, low_memory: bool, device: str = "cpu") -> KeyFace:
    """A model without storage."""
    with torch.device("meta"):
        model = KeyFace(config, device, low_memory)
    if half:
        for stage in (model.keyframe, model.interp, model.interp_bad):
            stage.bfloat16()
    return model


def place_all(model: KeyFace) -> None:
    """Storage for all parts, where they are while none works."""
    for part in model.parts().values():
        place(part, "cpu" if model.low_memory else model.device)


def sample(model: KeyFace) -> None:
    """A film, in as few steps as can be."""
    image = np.zeros((model.size, model.size, 3), np.uint8)
    for _ in model.animate(image, np.zeros(FILM, np.float32), steps=1):
        pass


def listen(model: KeyFace) -> None:
    """The encoders' work on the longest recording that they hear whole."""
    model.bring("wavlm", "beats")
    length = round(model.config.audio.max_whole_seconds * SAMPLE_RATE)
    model.audio.encode(torch.zeros(length, device=model.device), 0, model.config.keyframe.frames)


def fused(q: Tensor, *_, **__) -> Tensor:
    """Attention as a GPU computes it: nothing is kept but the result, shaped like the queries."""
    return torch.empty_like(q)


def predicted(config: Config, half: bool, low_memory: bool, work: Callable[[KeyFace], None],
              device: str = "cuda") -> tuple[int, int]:
    """Bytes of the weights that are on the device before `work`, and what its peak adds to them,
    without running any of it."""
    model, live = build(config, half, low_memory, device), LiveBytes(device)
    audio._mel_triangles.cache_clear()              # no real table in there, and no fake one after
    with (FakeTensorMode(allow_non_fake_inputs=True), live, patch.object(nn.Module, "to", move),
          patch.object(F, "scaled_dot_product_attention", fused),
          patch.object(FakeTensor, "numpy", lambda x: np.zeros(x.shape, np.uint8))):
        place_all(model)
        weights = live.now
        work(model)
    audio._mel_triangles.cache_clear()
    return weights, live.peak - weights


def allocated(config: Config, low_memory: bool, work: Callable[[KeyFace], None]) -> int:
    """What the peak of `work` adds to the weights, measured: the CPU allocator's own count."""
    model = build(config, False, low_memory)
    place_all(model)
    return grown(lambda: work(model))


def grown(work: Callable[[], None]) -> int:
    """What the peak of `work` adds to what is there before, by the CPU allocator's own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    with cli.scratch() as folder:
        path = folder / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    # The count begins with the record, when the weights are there.
    return max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")


def allocated_on_gpu(config: Config, low_memory: bool, work: Callable[[KeyFace], None]) -> int:
    """The peak on the GPU, weights included, of a model in bfloat16."""
    model = build(config, True, low_memory, "cuda")
    place_all(model)
    torch.cuda.reset_peak_memory_stats()
    work(model)
    return torch.cuda.max_memory_allocated()


def small() -> Config:
    """Shaped like the released model, and quick."""
    sizes = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1,
             "attention_resolutions": (1, 2)}
    stage = {"latent_shape": (4, 16, 16), "audio_dim": AudioConfig.tiny().width}
    config, hearing = Config(), replace(AudioConfig.tiny(), mapping="released")
    return replace(
        config, size=128, vae=VAEConfig(ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1),
        keyframe=replace(config.keyframe, unet=UNetConfig(**sizes), **stage),
        interp=replace(config.interp, **stage,
                       unet=UNetConfig(in_channels=9, emotion_dim=0, **sizes)),
        audio=hearing, interp_audio=replace(hearing, speech="wav2vec2"))


def main(argv: list[str] | None = None) -> None:
    cli.Parser("bench/gpu_memory.py", description=__doc__.split("\n\n")[0]).parse_args(argv)
    figures = {}
    for low_memory, name in ((False, ""), (True, "low_")):
        option = ", --low-memory" * low_memory
        guess = predicted(small(), False, low_memory, sample, "cpu")[1]
        truth = allocated(small(), low_memory, sample)
        print(f"small model on the CPU, float32{option}: predicted {guess / 1e6:.1f} MB above the "
              f"weights, allocated {truth / 1e6:.1f} MB ({guess / truth - 1:+.1%})", flush=True)
        figures[f"{name}predicted_to_allocated"] = guess / truth

        works = {"sampling": sample, "longest recording heard whole": listen}
        for does, work in works.items():
            weights, extra = (n / 1e9 for n in predicted(Config(), True, low_memory, work))
            print(f"full size, {does}, bfloat16{option}: weights on the GPU {weights:.2f} GB "
                  f"before, {weights + extra:.2f} GB at most", end="")
            figures[f"{name}{work.__name__}_gb"] = weights + extra
            if torch.cuda.is_available():
                measured = allocated_on_gpu(Config(), low_memory, work) / 1e9
                figures[f"{name}gpu_{work.__name__}_gb"] = measured
                print(f", measured {measured:.2f} GB", end="")
            print(flush=True)
    print(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(cli.run(main))
