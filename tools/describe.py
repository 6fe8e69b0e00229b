"""What a training takes, without running it: `python train_keyframe.py --config small --describe`.

One step of it is made on tensors without contents, and the storage that is alive after each of its
operations is added up. What an operation takes for itself while it runs is not seen, but for the
copy that a convolution makes of an input that is not channels-last; what libraries take comes on
top.
"""

import argparse
import os
import weakref
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from stage import Config, Stage
from tools import scaling
from vae import VAE

# Operations a second that a training gets out of a processor: assumed, not measured, as a quarter
# to a third of what makers say of matrix products.
SPEEDS = {"a core of a server, float32": 0.04e12, "RTX 4090, float32": 20e12,
          "RTX 4090, bfloat16": 45e12, "H100, bfloat16": 250e12}


# How to count an operation's products and sums, from its arguments and `out_val`: torch's own
# rules, and those of attention on a CPU, which they lack.
RULES = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)}


class LiveBytes(TorchDispatchMode):
    """Adds up the storages on a device that operations return, until they are freed: `now` and
    `peak` bytes; and their products and sums, `operations`."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.now, self.peak, self.operations = device, 0, 0, 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self.add(leaf)
        if rule := RULES.get(func._overloadpacket):
            self.operations += rule(*args, **(kwargs or {}), out_val=result)
        copied = 0
        if func is torch.ops.aten.convolution.default:
            last = torch.channels_last if args[0].ndim == 4 else torch.channels_last_3d
            if args[0].ndim > 3 and not args[0].is_contiguous(memory_format=last):
                copied = args[0].nbytes
        self.peak = max(self.peak, self.now + copied)
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


@dataclass
class Taken:
    """What one step takes: numbers of parameters, bytes, and operations (a product and a sum are
    two)."""

    parameters: int
    trained: int
    weights: int        # of the stage and of its average
    gradients: int
    optimizer: int
    autoencoder: int
    activations: int    # what the peak of the step adds to these
    operations: int

    @property
    def bytes(self) -> int:
        return (self.weights + self.gradients + self.optimizer + self.autoencoder
                + self.activations)


def size(tensors) -> int:
    """The bytes of some tensors."""
    return sum(t.nbytes for t in tensors)


class Training:
    """What a training of the stage `name` holds, and its step, on zeros."""

    def __init__(self, config: Config, name: str, bf16: bool = False):
        self.vae = VAE(config.vae).eval().requires_grad_(False)
        self.stage = scaling.fitted(Stage(getattr(config, name)), self.vae, bf16).train()
        self.average = Stage(self.stage.config).requires_grad_(False)
        self.trained = [p for p in self.stage.parameters() if p.requires_grad]
        self.optimizer = scaling.optimizer(self.stage, 1e-3)

    def passes(self, batch: int) -> None:
        """Forward and backward with `batch` windows."""
        c, v = self.stage.config, self.vae.config
        latents = torch.zeros(batch, c.frames, *c.latent_shape)
        known = latents[:, [0, -1]] if c.interpolation else latents[:, 0]
        audio = torch.zeros(batch, c.frames, 2, c.audio_dim)
        emotion = None if c.interpolation else torch.zeros(batch, c.frames, 2)
        side = c.latent_shape[-1] * v.patch * 2 ** (len(v.ch_mult) - 1)
        pictures = max(1, round(batch * c.pixel_share))
        losses = self.stage(self.vae, latents, known, audio, emotion,
                            self.stage.draw(latents.shape), torch.zeros(pictures, 3, side, side), 0)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()

    def learn(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()


def taken(config: Config, name: str, batch: int, bf16: bool = False) -> Taken:
    """What a step of the stage `name` takes, with `batch` windows at a time."""
    live = LiveBytes("cpu")
    # The number of a step, which corrects Adam's means, is known to no tensor without contents.
    with (FakeTensorMode(), live, patch("torch.optim.adam._get_value", lambda _: 1.0)):
        training = Training(config, name, bf16)
        training.passes(batch)
        peak = live.peak
        training.learn()
        stage = training.stage
        weights = size([*stage.parameters(), *training.average.parameters()])
        vae = size(training.vae.parameters())
        gradients = size(p.grad for p in training.trained)
        state = size(v for s in training.optimizer.state.values() for v in s.values())
        # From the second step on the optimizer's state is there during the passes, too.
        peak = max(peak + state, live.peak)
        return Taken(sum(p.numel() for p in stage.parameters()),
                     sum(p.numel() for p in training.trained), weights, gradients, state, vae,
                     peak - weights - gradients - state - vae, live.operations)


def describe(args: argparse.Namespace, config: Config, name: str) -> None:
    """Prints what the training of `args` takes of each process, and of time. With --shard the
    layers that are brought together for a moment come on top."""
    if os.environ.get("RANK", "0") != "0":
        return
    count = int(os.environ.get("WORLD_SIZE", "1"))
    batch = max(1, args.batch // (args.accumulate * count))
    found = taken(config, name, batch, args.bf16)
    if args.shard:
        found = replace(found, weights=found.weights // count, optimizer=found.optimizer // count,
                        gradients=found.gradients // count)
    operations = args.accumulate * found.operations
    print(f"{name}: {found.parameters / 1e6:,.1f} M parameters, {found.trained / 1e6:,.1f} M "
          f"trained\nmemory of a process, {batch} window{'s' * (batch > 1)} at a time: "
          f"{found.bytes / 1e9:.2f} GB")
    for kind, what in (("weights", "of the network and of its average"), ("gradients", ""),
                       ("optimizer", "means of gradients"), ("autoencoder", ""),
                       ("activations", "and all else at the peak of a step")):
        print(f"  {kind:11} {getattr(found, kind) / 1e9:7.2f} GB  {what}".rstrip())
    print(f"operations of a process: {operations / 1e12:.3g} T a step; at assumed speeds:")
    for processor, speed in SPEEDS.items():
        seconds = operations / speed
        steps = args.steps or args.minutes * 60 / seconds
        length = f"{steps:,.0f} steps in {steps * seconds / 3600:,.1f} hours"
        print(f"  {processor:32} {speed / 1e12:6g} T a second: {length}")
