"""What a training at a photograph's size needs beside its loop: configs by name, what goes on from
published weights, and how a large network fits into memory."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from stage import Config, Stage
from tools.checkpoint import fitting, from_dict, load_config, overlaid, read_json
from tools.cli import HERE, WEIGHTS, InputError, number
from tools.muon import Muon
from vae import VAE

LEARNING_RATE, WARM_UP = 1e-5, 1000  # of the paper, to go on from SVD's network
# Names of --init, and the folders beside weights/tiny that are made of them: in float32.
PUBLISHED = {"svd": "svd", "released": "released-float32"}
NAMED = ("tiny", "small", "full")


def add_options(add: Callable) -> None:
    """The options of a training that are about sizes and memory, by `add_argument`."""
    add("--config", type=named_config, metavar="tiny|small|full|FILE.json",
        help="sizes of a new model (default: those of --init, of --out, or of weights/tiny)")
    add("--without", choices=("wavlm", "beats"),
        help="leave this audio encoder out, of both stages, in training as in sampling")
    add("--describe", action="store_true",
        help="print parameters, memory, operations and hours of this training, and stop")
    add("--accumulate", type=number(int, 1, 10**5), default=1, metavar="PARTS",
        help="work a batch in so many parts, one after the other: less memory")
    add("--bf16", action="store_true", help="products and convolutions in bfloat16")
    add("--shard", action="store_true",
        help="spread the network and all that belongs to it over the processes of torchrun")


def check_options(args: argparse.Namespace) -> None:
    """Raises InputError for options that contradict each other."""
    if args.resume and (args.init or args.config or args.without):
        raise InputError("--resume continues what --out holds; leave out --init, --config and "
                         "--without")
    if args.shard and os.environ.get("WORLD_SIZE", "1") == "1":
        raise InputError("--shard: there is one process only; start several with torchrun")


def named_config(name: str) -> Config:
    """The config of `--config`: tiny, small, full, or FILE.json, which holds what is not as in
    `Config()`, at any depth. Raises InputError where it is unknown or no model has these sizes."""
    if name == "tiny":
        return Config.tiny(128)
    path = HERE / "configs" / f"{name}.json" if name in NAMED else Path(name)
    if not path.is_file():
        raise InputError(f'--config: "{name}" is none of {", ".join(NAMED)}, nor a JSON file')
    values = overlaid(json.loads(json.dumps(asdict(Config()))), read_json(path))
    with fitting(path), torch.device("meta"):
        config = from_dict(Config, values, str(path)).check()
        for part in (config.keyframe, config.interp):
            Stage(part)
        VAE(config.vae)
    return config


def chosen(args: argparse.Namespace) -> Config:
    """The config that the options name, before any part is there: `--config`, else that of --init
    or of --out, else that of weights/tiny, whose frozen parts are then taken."""
    if str(args.init) in PUBLISHED:
        return finetuned(args.config or named_config("full"))
    begun = args.out if (args.out / "config.json").exists() else WEIGHTS
    return args.config or load_config(Config, args.init or begun)


def settled(found: Config, source: Path, args: argparse.Namespace) -> Config:
    """The config of a new training whose frozen parts are those of the folder `source`, with the
    config `found`. What stands in a weights folder wins: these parts stay what they are, and so
    does an --out that has a config.json. `--config` decides the rest, the two networks. Raises
    InputError where they do not fit together."""
    if args.init and args.init.name in PUBLISHED.values() and args.init.parent.name == "weights":
        found = finetuned(found)
    for config in filter(None, (found, args.config)):
        for stage in (config.keyframe, config.interp):
            stage.without = args.without or stage.without
    if not args.config:
        return found
    stages = {name: replace(stage, finetune=stage.finetune or getattr(found, name).finetune)
              for name, stage in (("keyframe", args.config.keyframe),
                                  ("interp", args.config.interp))}
    config = replace(args.config, size=found.size, vae=found.vae, audio=found.audio,
                     interp_audio=found.interp_audio, **stages)
    try:
        config.check()
    except ValueError as error:
        raise InputError(f"--config: {error}, of the frozen parts in {source}; make a folder of "
                         "others with python -m tools.pretrained, and give it as --init") from None
    if (args.out / "config.json").exists() and load_config(Config, args.out) != config:
        raise InputError(f"--config: {args.out / 'config.json'} says otherwise, and what is there "
                         "stays; leave out --config, or give another --out")
    return config


def finetuned(config: Config) -> Config:
    """The same, for the paper's recipe."""
    return replace(config, keyframe=replace(config.keyframe, finetune=True),
                   interp=replace(config.interp, finetune=True))


# ---- the network ------------------------------------------------------------------------------


def in_bfloat16(forward: Callable, x: Tensor, *args) -> Tensor:
    """Calls a network with its products and convolutions in bfloat16; its weights, and all around
    it, stay in float32."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return forward(x, *args)


def lpips_distance(device: torch.device) -> Callable | None:
    """LPIPS as `Stage.distance`, where the extra `lpips` is installed; its VGG comes from
    torchvision, which downloads it once. Raises InputError where it cannot."""
    try:
        import lpips
    except ModuleNotFoundError:
        return None
    try:
        network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False).to(device)
    except OSError as error:
        raise InputError(f"lpips: torchvision's VGG16 cannot be downloaded ({error}); connect, or "
                         "uninstall lpips: the autoencoder's own features then stand in its place"
                         ) from None
    return lambda _, a, b: network(a, b).flatten()


def rate(stage: Stage, usual: float) -> float:
    """The highest learning rate: the paper's, to go on from SVD's network, else the usual one."""
    return LEARNING_RATE if stage.config.finetune else usual


def make_ready(stage: Stage, vae: VAE, bf16: bool) -> Stage:
    """The same stage, which is on its device, made to train as its config and --bf16 say. Drawings
    have a distance of their own; pictures of 256 pixels and more are compared by LPIPS if it is
    there."""
    if stage.config.pixel_weight and stage.config.latent_shape[-1] >= 32:
        device = next(stage.parameters()).device
        stage.distance = lpips_distance(device) or stage.distance
    return fitted(stage, vae, bf16)


# Of a stage's weights those that are no inner matrices: what stands at its inputs and its output.
ENDS = ("audio_proj", "learned_mask", "input_blocks.0.", "time_embed.0", "label_emb.0.0",
        "unet.out.")


def optimizer(stage: Stage, lr: float) -> torch.optim.Optimizer:
    """Muon, which from nothing takes fewer steps (who wants AdamW returns it here: rates are meant
    to fit both); AdamW, as in the paper, to go on from SVD's network, which AdamW trained."""
    if stage.config.finetune:
        return torch.optim.AdamW(stage.parameters(), lr, betas=(.9, .99), weight_decay=.01,
                                 foreach=True)
    return Muon(stage, lr, ENDS)


def parts(count: int, *batch: object) -> Iterator[list]:
    """A batch in `count` parts of its rows: tensors and what has `rows` are cut, as processes share
    them, and pictures stay by their clips; None stays as it is."""
    for i in range(count):
        rows = slice(i, None, count)
        yield [value[rows] if isinstance(value, Tensor) else value and value.rows(rows)
               for value in batch]


def fitted(stage: Stage, vae: VAE, bf16: bool) -> Stage:
    """The same stage, made to train as its config and --bf16 say, with the autoencoder of its pixel
    loss. Parameters keep their names and values."""
    unet = stage.unet
    for name, parameter in unet.named_parameters():
        temporal = "time_" in name and not name.startswith("time_embed")
        parameter.requires_grad_(not (stage.config.finetune and temporal))
    # Modules are copied for the average of the weights, and a copy's `forward` must be its own:
    # so these are partial functions of a module's method, and no closures.
    if stage.config.checkpoint_activations:
        blocks = (*unet.input_blocks, unet.middle_block, *unet.output_blocks)
        for layer in (layer for block in blocks for layer in block):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        for layer in (module for module in vae.modules() if hasattr(module, "mix_time")):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
            layer.mix_time = partial(checkpoint, layer.mix_time, use_reentrant=False)
    if bf16:
        unet.forward = partial(in_bfloat16, unet.forward)
    return stage


# ---- several processes, each with a share of everything ----------------------------------------


def sharded(stage: Stage, average: nn.Module, optimizer: torch.optim.Optimizer) -> Stage:
    """The stage itself, with its parameters, gradients, optimizer state and average spread over all
    processes, which bring a layer together while it is computed (torch's `fully_shard`). Before,
    each process holds all of it, as initialised or as resumed: this is for the steps."""
    mesh = init_device_mesh(next(stage.parameters()).device.type, (dist.get_world_size(),))
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    held = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    for module in (stage, average.module):
        unet = module.unet
        for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
            for layer in block:
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # The average is not called but asked, when it is measured.
    for method in ("conditions", "denoise"):
        register_fsdp_forward_method(average.module, method)
    # The optimizer follows: the same parameters under the same names, and its means of them.
    shares, state = dict(stage.named_parameters()), dict(optimizer.state)
    given = {names[id(p)]: values for p, values in state.items()}
    optimizer.state.clear()
    for name, values in given.items():
        share = shares[name]
        optimizer.state[share] = {
            key: distribute_tensor(value, mesh, share.placements) if value.shape == share.shape
            else value for key, value in values.items()}
    for group in optimizer.param_groups:
        count = len(group["params"])
        group["params"] = [shares[name] for name in held[:count]]
        held = held[count:]
    return stage


def whole(state: dict, rank: int) -> dict:
    """A state with what is spread over the processes put together: all of them call this, and the
    first gets it."""
    def together(share: DTensor) -> Tensor | None:
        tensor = share.full_tensor()
        return tensor.cpu() if rank == 0 else None

    return tree_map_only(DTensor, together, state)
