"""Time and memory of network and decoder against those of `diffusers` at the same sizes.

    python bench/unet.py                 # full size, random weights; on the GPU if there is one
    python bench/unet.py --small         # a reduced network: tries the script in a minute

Networks: UNet and UNetSpatioTemporalConditionModel, for one window (14 frames, 14 audio tokens);
decoders: VAE and AutoencoderKLTemporalDecoder, every frame on its own as in sampling. Float32 on a
CPU, bfloat16 on a GPU.

- forward, backward (forward and backward), loop (keyframe sampling with guidance, the first
  `--steps` steps: all steps cost the same), vae (decoding 14 frames), vae_backward (4 frames).
- Every measurement has a process of its own, ours and theirs alternating; the time is the shortest
  of all, the memory the smallest peak above what the weights take: of resident memory on a CPU
  (Linux), of allocated memory on a GPU.
- Ratios below 1 mean that ours needs less. `*_share` is the rate of floating-point operations as a
  share of a plain matrix product's.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

# In front: this folder has files named like the modules that they measure.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import cli
from tools.cli import number

FRAMES = 14
# The largest that fit in 24 GB and a quarter of an hour. The network's own is 64: the smaller the
# pictures, the more its 1.5e9 weights, which a convolution on a CPU brings into another order at
# each call, count beside the work done with them.
CPU_SIZES = {"forward": 32, "backward": 24, "loop": 32, "vae": 16, "vae_backward": 16}
WHAT = list(CPU_SIZES)
SIDES = ("ours", "diffusers")


# ---- what is measured: everything here runs in a process of its own -----------------------------


def make_network(side: str, small: bool):
    """The network without storage; diffusers' behind the signature of `UNet`."""
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    from unet import UNet, UNetConfig

    class Theirs(torch.nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            # As many numbers a window, each a sinusoid of 256, as our label embedding's 1536.
            self.net = UNetSpatioTemporalConditionModel(
                projection_class_embeddings_input_dim=1536, **sizes)

        def forward(self, x, c_noise, context, emotion, frames):
            numbers = torch.zeros(len(context), 6, dtype=x.dtype, device=x.device)
            return self.net(x.unflatten(0, (-1, frames)), c_noise[::frames], context,
                            numbers).sample.flatten(0, 1)

    if side == "ours":
        sizes = {"model_channels": 64, "channel_mult": (1, 2, 2), "num_res_blocks": 1,
                 "attention_resolutions": (1, 2)}
        return UNet(UNetConfig(**(sizes if small else {})))
    if not small:
        return Theirs(num_attention_heads=(5, 10, 20, 20))      # SVD's own; the default differs
    kinds = ["CrossAttn{}BlockSpatioTemporal"] * 2 + ["{}BlockSpatioTemporal"]
    return Theirs(block_out_channels=(64, 128, 128), layers_per_block=1,
                  num_attention_heads=(1, 2, 2), down_block_types=[k.format("Down") for k in kinds],
                  up_block_types=[k.format("Up") for k in reversed(kinds)])


def make_decoder(side: str, small: bool):
    """The decoder without storage, latents (N, 4, h, w) to images (N, 3, 8h, 8w) or smaller."""
    from diffusers import AutoencoderKLTemporalDecoder

    from vae import VAE, VAEConfig

    mult = (1, 2) if small else (1, 2, 4, 4)
    ch = 32 if small else 128
    if side == "ours":
        vae = VAE(VAEConfig(ch=ch, ch_mult=mult))
        decode = vae.decode
    else:
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=[ch * m for m in mult], layers_per_block=2,
            down_block_types=["DownEncoderBlock2D"] * len(mult))

        def decode(z):
            return vae.decode(z, num_frames=1).sample
    del vae.encoder
    return vae, decode


def make_work(side: str, what: str, small: bool, size: int, steps: int):
    """(module, work): `work(device, dtype)` does once what is measured and ends with its result."""
    import torch

    from diffusion import sample, schedule
    from stage import Conditions, Stage, StageConfig, guided_keyframes
    from unet import UNetConfig

    if what.startswith("vae"):
        module, decode = make_decoder(side, small)
        frames = 4 if what == "vae_backward" else FRAMES

        def forward(**kind):
            return decode(torch.ones(frames, 4, size, size, **kind))
    else:
        module = make_network(side, small)

        def forward(**kind):
            return module(torch.ones(FRAMES, 8, size, size, **kind), torch.ones(FRAMES, **kind),
                          torch.ones(1, FRAMES, 1024, **kind), torch.ones(FRAMES, 512, **kind),
                          FRAMES)

    def backward(**kind):
        module.zero_grad(set_to_none=True)
        forward(**kind).square().mean().backward()

    def loop(**kind):
        # All that sampling does is real except the network, which is replaced on one side.
        stage = Stage(StageConfig(unet=UNetConfig(
            model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=())))
        stage.unet = module
        known = Conditions(torch.ones(1, 4, size, size, **kind),
                           torch.ones(1, FRAMES, 1024, **kind), torch.ones(FRAMES, 512, **kind))
        guided = guided_keyframes(stage.denoise, known, 2.0, 5.0)
        noise = torch.ones(1, FRAMES, 4, size, size, **kind)
        for _ in sample(guided, noise, schedule(10)[:steps + 1]):
            pass

    def without_gradients(run: Callable) -> Callable:
        return lambda **kind: torch.no_grad()(run)(**kind)

    if what.endswith("backward"):
        return module, backward
    return module, without_gradients(loop if what == "loop" else forward)


def fill(module) -> None:
    """Small random numbers, the same million again and again: 1.5e9 normal ones take a minute."""
    import torch

    pool = torch.randn(1 << 20) * 0.02
    with torch.no_grad():
        for tensor in chain(module.parameters(), module.buffers()):
            for part in tensor.view(-1).split(len(pool)):
                part.copy_(pool[:len(part)])


def resident() -> int:
    """Bytes of this process in memory, after giving back what the allocator only keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def clocked(run: Callable, device: str) -> float:
    """Seconds that it takes, on a GPU until all is done."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def measure(job: dict) -> dict:
    """One measurement: {"seconds", "bytes", "flops"}, of a matrix product without memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = job["device"]
    kind = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    if job["what"] == "product":
        n = 512 if job["small"] else 8192 if device == "cuda" else 4096
        a, b = torch.randn(n, n, **kind), torch.randn(n, n, **kind)
        return {"seconds": min(clocked(lambda: a @ b, device) for _ in range(10)),
                "flops": 2 * n**3}
    with torch.device("meta"):
        module, work = make_work(
            *(job[name] for name in ("side", "what", "small", "size", "steps")))
        module = module.to(**(kind | {"device": "meta"})).eval()
        with FlopCounterMode(display=False) as counter:
            work(**(kind | {"device": "meta"}))
    module.zero_grad(set_to_none=True)
    module.to_empty(device=device)
    fill(module)
    if device == "cuda":  # once for what is made at the first call
        work(**kind)
    before = resident()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = min(clocked(lambda: work(**kind), device) for _ in range(job["runs"]))
    # Maximum resident memory is in KiB on Linux.
    peak = (torch.cuda.max_memory_allocated() if device == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"seconds": seconds, "bytes": peak - before, "flops": counter.get_total_flops()}


# ---- the comparison: this process stays small ---------------------------------------------------


def in_process(job: dict) -> dict:
    """`measure(job)` in a new process; one that fails (it says why) ends the comparison."""
    done = subprocess.run([sys.executable, __file__, "--job", json.dumps(job)], check=False,
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise OSError(f"no figure of {job['what']} ({job.get('side', 'torch')}): its process ended "
                      f"with {done.returncode}; try a smaller --size")
    return json.loads(done.stdout.splitlines()[-1])


def best(results: list[dict]) -> dict:
    """The shortest time and the smallest peak of several measurements of the same."""
    return {key: min(result[key] for result in results) for key in results[0]}


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("bench/unet.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--size", type=number(int, 8, 512),
                        help="side of the latents; default: 64 on a GPU, on a CPU 16 to 32")
    parser.add_argument("--steps", type=number(int, 1, 11),
                        help="of the loop; default: all 11 on a GPU, else 1")
    parser.add_argument("--repeat", type=number(int, 1, 100), default=2,
                        help="processes for each measurement")
    parser.add_argument("--small", action="store_true", help="a reduced network and decoder")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    ask = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    there = subprocess.check_output([sys.executable, "-c", ask], text=True).strip()
    if args.device == "cuda" and there != "cuda":
        raise cli.InputError("--device: there is no GPU here that torch can use")
    if not find_spec("diffusers"):
        raise cli.InputError('diffusers is not here; pip install -e ".[test]" first')
    args.device = args.device or there
    common = {"device": args.device, "small": args.small,
              "steps": args.steps or (11 if args.device == "cuda" else 1)}

    product = best([in_process(common | {"what": "product"}) for _ in range(args.repeat)])
    rate = product["flops"] / product["seconds"]
    print(f"a matrix product on {args.device}: {rate / 1e9:.0f} GFLOP/s\n")
    print("of the latents: size |     ours diffusers    ratio |     ours diffusers      ratio |"
          "     ours diffusers        ratio")
    figures = {"product_gflops": rate / 1e9}
    for what in args.what:
        size = args.size or (64 if args.device == "cuda" else CPU_SIZES[what])
        job = common | {"what": what, "size": size, "runs": 1 if what == "loop" else 2}
        results = {side: [] for side in SIDES}
        for _ in range(args.repeat):
            for side in SIDES:
                results[side].append(in_process(job | {"side": side}))
        ours, theirs = (best(results[side]) for side in SIDES)
        ratio = {key: ours[key] / theirs[key] for key in ours}
        columns = [f"{what:15} {size:4}"]
        for key, unit, scale, digits in (("seconds", "s", 1, 2), ("bytes", "MiB", 2**20, 0),
                                         ("flops", "TFLOP", 1e12, 2)):
            columns.append(f"{ours[key] / scale:9.{digits}f} {theirs[key] / scale:9.{digits}f} "
                           f"{unit} {ratio[key]:6.2f}")
        print(" |".join(columns), flush=True)
        figures |= {f"{what}_time": ratio["seconds"], f"{what}_memory": ratio["bytes"],
                    f"{what}_flops": ratio["flops"],
                    f"{what}_share": ours["flops"] / ours["seconds"] / rate}
    print(" ".join(f"{name}={value:.3g}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(cli.run(main))
