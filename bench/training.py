"""What does training get out of a machine? `python bench/training.py`, in the repository's root.

For the tiny and the small config, with networks as they are initialised and clips of noise on the
disk: training steps a second, the operations in them as a share of what the same device does in
products of large matrices, and the share of the time that a step waits for its data. For the drawn
world: windows a second that are prepared. And the peak of anonymous memory (what no file backs) of
a process that reads 100 and 1,000 windows of 256 pixels, each once. Linux only.
"""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data import Clips
from keyface import KeyFace
from stage import Config, Stage
from tools import prepare, scaling
from tools.checkpoint import save_config
from tools.cli import WEIGHTS, Parser, number, pick_device, run, scratch
from vae import VAE

FRAMES = 200  # of a made-up clip


def made_up(folder: Path, config: Config, count: int) -> Path:
    """A weights folder with nothing in it but its config, and in it a cache of `count` clips of
    noise, which are links to one shard."""
    folder.mkdir(parents=True)
    save_config(config, folder)
    for name in config.frozen():
        (folder / f"{name}.safetensors").touch()
    rng, c = np.random.default_rng(0), config.keyframe.latent_shape
    file = io.BytesIO()
    picture = rng.integers(0, 256, (config.size, config.size, 3), np.uint8)
    Image.fromarray(picture).save(file, "JPEG", quality=50)
    jpeg = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    tokens = torch.randn(FRAMES, 2, config.keyframe.audio_dim).half()
    shard = {"mean": torch.randn(FRAMES, *c).half(), "logvar": torch.zeros(FRAMES, *c).half() - 9,
             "times": torch.arange(FRAMES), "emotion": torch.zeros(FRAMES, 2),
             "audio_tokens": tokens, "interp_tokens": tokens.clone(), "jpegs": jpeg.repeat(FRAMES),
             "ends": torch.arange(1, FRAMES + 1) * len(jpeg)}
    cache = folder / "cache"
    cache.mkdir()
    save_file(shard, cache / "0")
    for i in range(1, count):
        os.link(cache / "0", cache / str(i))
    entry = {"bytes": (cache / "0").stat().st_size, "kind": "speech", "frames": FRAMES,
             "times": None, "split": "train"}
    (cache / "manifest.json").write_text(json.dumps({
        "version": prepare.VERSION, "made_with": prepare.fingerprint(folder, config),
        "size": config.size, "clips": [entry | {"shard": str(i)} for i in range(count)]}))
    return cache


def product_rate(device: str, side: int = 2048) -> float:
    """Operations a second in products of matrices, float32."""
    a = torch.randn(side, side, device=device)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def steps(config: Config, interpolation: bool, batch: int, count: int, device: str
          ) -> dict[str, float]:
    """Steps a second, the share of the time in which they wait for data, and operations a step."""
    stage = Stage(config.interp if interpolation else config.keyframe).to(device).train()
    vae = VAE(config.vae).to(device).requires_grad_(False)
    optimizer = scaling.optimizer(stage, 1e-3)
    with scratch() as folder:
        cache = made_up(folder / "weights", config, 8)
        clips = Clips(cache, "train", stage.config, vae.scale, cache.parent)

        def step(number: int) -> float:
            """One training step; the seconds that it waited for its data."""
            began = time.perf_counter()
            windows = clips.batch(batch, number).to(device)
            pictures = None if interpolation else windows.pictures(
                max(1, round(batch * stage.config.pixel_share)), 0)
            waited = time.perf_counter() - began
            known = windows.latents[:, [0, -1]] if interpolation else windows.identity
            draws = stage.draw(windows.latents.shape).to(device)
            latent, pixel = stage(vae, windows.latents, known, windows.audio_tokens,
                                  windows.emotion, draws, pictures, 0)
            optimizer.zero_grad(set_to_none=True)
            (latent + pixel).backward()
            torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
            optimizer.step()
            latent.item()  # waits for a GPU
            return waited

        with FlopCounterMode(display=False) as counted:
            step(0)
        began = time.perf_counter()
        waited = sum(step(1 + i) for i in range(count))
        seconds = time.perf_counter() - began
    return {"per_second": count / seconds, "waiting": waited / seconds,
            "operations": counted.get_total_flops()}


def read_all(windows: int) -> float:
    """Reads so many windows of 256 pixels once, with all their pictures: the peak of anonymous
    memory in MB."""
    config = scaling.named_config("small")
    with scratch() as folder:
        cache = made_up(folder / "weights", config, windows)
        clips = Clips(cache, "train", config.keyframe, lambda z: z, cache.parent)
        peak = 0.0
        for number in range(windows // 4):
            batch = clips.batch(4, number)
            for frame in range(config.keyframe.frames):
                batch.pictures(4, frame)
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
    return peak


def main(argv: list[str] | None = None) -> None:
    parser = Parser("bench/training.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    parser.add_argument("--steps", type=number(int, 1, 1000), default=12, help="of each training "
                        "(on a CPU 2 of the small ones)")
    parser.add_argument("--memory", type=number(int, 4, 10**5), metavar="WINDOWS",
                        help="read so many windows in this process, print the peak, and stop")
    args = parser.parse_args(argv)
    if args.memory:
        print(f"{read_all(args.memory):.1f}")
        return
    device, figures = pick_device(args.device), {}
    for name, batch in (("tiny", 4), ("small", 1)):
        config = scaling.named_config(name)
        for stage in ("keyframe", "interp"):
            few = args.steps if name == "tiny" or device != "cpu" else 2
            found = steps(config, stage == "interp", batch, few, device)
            rate = product_rate(device)
            share = found["per_second"] * found["operations"] / rate
            print(f"{name} {stage}, batch {batch}, {device}: {found['per_second']:.3g} steps/s of "
                  f"{found['operations'] / 1e9:.3g} billion operations, {share:.0%} of the "
                  f"{rate / 1e9:.0f} billion a second of a matrix product; waiting for data "
                  f"{found['waiting']:.1%}", flush=True)
            figures |= {f"{name}_{stage}_share": share,
                        f"{name}_{stage}_waiting": found["waiting"]}
    model = KeyFace.load_frozen(WEIGHTS)
    source = prepare.DrawnWorld(9, model.config)
    began = time.perf_counter()
    for i in range(4):
        for piece in source.pieces(i):
            prepare.encode(piece, model)
    windows = 4 * (source.windows + source.SEGMENTS)
    print(f"drawn world, one process: {windows / (time.perf_counter() - began):.2f} windows/s are "
          "prepared", flush=True)
    peaks = [float(subprocess.run([sys.executable, __file__, f"--memory={n}"], check=True,
                                  capture_output=True, text=True).stdout) for n in (100, 1000)]
    print(f"anonymous memory at most: {peaks[0]:.0f} MB with 100 windows of 256 pixels, "
          f"{peaks[1]:.0f} with 1,000")
    print(" ".join(f"{name}={value:.3g}" for name, value in figures.items()),
          f"memory_growth_mb={peaks[1] - peaks[0]:.1f}")


if __name__ == "__main__":
    sys.exit(run(main))
