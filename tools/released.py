"""The released weights: where the published files are, and what their names mean here.

`python sample.py --weights released` downloads the files once, `--weights DIR` reads a folder of
them, `--list-weights` tells what is there. `python -m tools.released DIR OUT` turns a set once into
a weights folder: it takes about half of the space and loads straight onto the device.
"""

import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from fnmatch import fnmatch
from pathlib import Path

import torch
from huggingface_hub import constants, errors, hf_hub_download, logging, model_info
from safetensors.torch import load_file
from torch import Tensor, nn

from keyface import Config, KeyFace
from tools.checkpoint import (
    check_names,
    check_readable,
    check_same,
    check_values,
    save_config,
    save_part,
)
from tools.cli import InputError, Parser, explained, make_folder, run, warn

# ---- the files --------------------------------------------------------------------------------

FOLDER = Path(__file__).resolve().parents[1] / "weights" / "released"  # for files put there by hand
PATIENCE = 10  # seconds without an answer of the hub
logging.set_verbosity_error()  # it warns of each try again; what failed is told below, in a line
KEYFACE, SVD = "toninio19/keyface", "stabilityai/stable-video-diffusion-img2vid"
BEATS_FILE = "checkpoints/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"


@dataclass(frozen=True)
class Published:
    part: str  # what it becomes in a weights folder
    purpose: str
    repository: str  # on huggingface.co
    file: str  # its name there, or a pattern of it; of several that match the shortest is taken
    gigabytes: float  # in float32; it may be half
    gated: bool = False  # behind a licence that the user accepts


FILES = (  # small ones first, so that one that is missing or gated shows at once
    Published("vae", "autoencoder", SVD, "vae/diffusion_pytorch_model*.safetensors", 0.4, True),
    Published("wavlm", "hears speech, for keyframes", KEYFACE, "checkpoints/WavLM-Base+.pt", 0.4),
    Published("wavlm", "the same, or this", "microsoft/wavlm-base-plus", "pytorch_model.bin", 0.4),
    Published("wav2vec2", "hears speech, for frames between", "facebook/wav2vec2-base-960h",
              "model.safetensors", 0.4),
    Published("beats", "hears everything else", KEYFACE, BEATS_FILE, 0.4),
    Published("keyframe", "keyframes", KEYFACE, "checkpoints/keyframe*.pt", 6.4),
    Published("interp", "frames between them", KEYFACE, "checkpoints/interpolation.pt", 6.4),
    Published("interp_bad", "their autoguidance (can be left out)", KEYFACE,
              "checkpoints/interpolation_bad.pt", 6.4),
)
OPTIONAL = "interp_bad"
NETWORKS = ("keyframe", "interp", "interp_bad")
# A name that only one stage's checkpoint has.
MARKS = {"keyframe": "conditioner.embedders.3.linear.weight", "interp": "model.learned_mask"}

# ---- the names: pattern -> ours, in this order; None: not needed here --------------------------

Rule = tuple[str, str | Callable[[re.Match], str] | None]


def numbered(form: str, place: Callable[[int, int], int]) -> Callable[[re.Match], str]:
    """A replacement with a number computed from one or two found ones: level, and block in it."""
    return lambda m: form.format(place(int(m[1]), int(m[2]) if m.re.groups > 1 else 0))


# The training checkpoint's and SVD's own names of a network, and `diffusers`'.
NETWORK_NAMES: tuple[Rule, ...] = (
    (r"^_forward_module\.", ""),  # left before every name by the tool that trained it
    (r"^first_stage_model\.", None),  # the autoencoder's decoder, which has its own file
    (r"^conditioner\.embedders\.0\.", None),  # an image autoencoder's encoder, the same
    (r"^loss_fn\.", None),  # LPIPS, of training
    (r"^model\.learned_mask$", "learned_mask"),
    (r"^conditioner\.embedders\.[13]\.linear\.", "audio_proj."),
    (r"^model\.diffusion_model\.", ""),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.", "time_embed."),
    (r"^add_embedding\.", "label_emb.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.(\d)", numbered("middle_block.{}", lambda i, _: 2 * i)),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"s\.(\d)\.resnets\.(\d)", r"s.\1.\2.0"),  # level, block, layer
    (r"s\.(\d)\.attentions\.(\d)", r"s.\1.\2.1"),
    (r"s\.(\d)\.downsamplers\.0\.conv", r"s.\1.2.0.op"),
    (r"s\.0\.upsamplers\.0", "s.0.2.1"),  # the coarsest level has no transformers
    (r"s\.(\d)\.upsamplers\.0", r"s.\1.2.2"),
    (r"^down_blocks\.(\d)\.(\d)", numbered("input_blocks.{}", lambda i, j: 3 * i + j + 1)),
    (r"^up_blocks\.(\d)\.(\d)", numbered("output_blocks.{}", lambda i, j: 3 * i + j)),
    (r"(_res_block)\.norm1", r"\1.in_layers.0"),
    (r"(_res_block)\.conv1", r"\1.in_layers.2"),
    (r"(_res_block)\.time_emb_proj", r"\1.emb_layers.1"),
    (r"(_res_block)\.norm2", r"\1.out_layers.0"),
    (r"(_res_block)\.conv2", r"\1.out_layers.3"),
    (r"(_res_block)\.conv_shortcut", r"\1.skip_connection"),
    (r"spatial_res_block\.", ""),
    (r"temporal_(res_block|transformer_blocks)\.", "time_stack."),
    (r"\.linear_1\.", ".0."),
    (r"\.linear_2\.", ".2."),
    (r"^(time_embed|label_emb|input_blocks|middle_block|output_blocks|out)\.", r"unet.\1."),
)
VAE_NAMES: tuple[Rule, ...] = (  # SVD's own, and `diffusers`'
    (r"^first_stage_model\.", ""),
    (r"(down|up)_blocks", r"\1"),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"mid_block\.resnets\.(\d+)", numbered("mid.block_{}", lambda i, _: i + 1)),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"resnets", "block"),
    (r"temporal_res_block\.norm1", "time_stack.in_layers.0"),
    (r"temporal_res_block\.conv1", "time_stack.in_layers.2"),
    (r"temporal_res_block\.norm2", "time_stack.out_layers.0"),
    (r"temporal_res_block\.conv2", "time_stack.out_layers.3"),
    (r"spatial_res_block\.|time_mixer\.", ""),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"\.(q)uery\.|\.(k)ey\.|\.(v)alue\.", lambda m: f".{m[m.lastindex]}."),  # its older ones
    (r"to_out\.0|proj_attn", "proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"time_conv_out", "conv_out.time_mix_conv"),
)
SPEECH_NAMES: tuple[Rule, ...] = (  # WavLM's own, and `transformers`' of both, with older ones
    (r"^lm_head\.", None),  # wav2vec2's file is of a recogniser: this tells letters apart,
    (r"^wav2vec2\.", ""),  # and this hears
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"(conv_layers\.\d)\.0\.", r"\1.conv."),
    (r"(conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"\.self_attn\.", ".attention."),
    (r"\.grep_linear\.", ".gru_rel_pos_linear."),
    (r"\.grep_a$", ".gru_rel_pos_const"),
    (r"\.relative_attention_bias\.", ".rel_attn_embed."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
BEATS_NAMES: tuple[Rule, ...] = (
    (r"^predictor\.", None),  # AudioSet's classes
    (r"layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.", None),  # copies of layer 0's
)
NAMES = {**dict.fromkeys(NETWORKS, NETWORK_NAMES), "vae": VAE_NAMES, "wavlm": SPEECH_NAMES,
         "wav2vec2": SPEECH_NAMES, "beats": BEATS_NAMES}


def renamed(part: str, published: dict) -> dict:
    """A dictionary by published names -> by ours, without what is not needed here."""
    result = {}
    for name, value in published.items():
        for pattern, to in NAMES[part]:
            if to is not None:
                name = re.sub(pattern, to, name)
            elif re.search(pattern, name):
                break
        else:
            if name in result:
                raise InputError(f"{part}: two of the published names both mean {name}")
            result[name] = value
    levels = re.findall(r"\bdecoder\.up_blocks\.(\d+)\.", " ".join(published))
    if part == "vae" and levels:  # numbered from the coarsest there, from the finest here
        turned = numbered("decoder.up.{}", lambda i, _: max(map(int, levels)) - i)
        result = {re.sub(r"decoder\.up\.(\d+)", turned, k): v for k, v in result.items()}
    return result


def autoencoder(published: dict[str, Tensor], quant_conv: bool = False) -> dict[str, Tensor]:
    """Tensors of `VAE` from those of SVD's file or `diffusers`', which has matrices for attention's
    1x1 convolutions, and one (`quant_conv`, kept on request) that the encoder's last takes in."""
    tensors = {k: v[:, :, None, None] if ".attn_1." in k and v.ndim == 2 else v
               for k, v in renamed("vae", published).items()}
    if "quant_conv.weight" in tensors and not quant_conv:
        with suppress(KeyError, IndexError, RuntimeError):  # `check_names` will tell
            matrix = tensors["quant_conv.weight"].flatten(1).float()  # (8, 8)
            weight, bias = (tensors[f"encoder.conv_out.{k}"].float() for k in ("weight", "bias"))
            weight = torch.einsum("oi,ichw->ochw", matrix, weight)
            bias = matrix @ bias + tensors["quant_conv.bias"].float()
            tensors |= {"encoder.conv_out.weight": weight, "encoder.conv_out.bias": bias}
            del tensors["quant_conv.weight"], tensors["quant_conv.bias"]
    return tensors


# ---- finding and downloading -------------------------------------------------------------------


def shortest(place: Path) -> Path | None:
    """The file of that name, or of those of a pattern the one of the shortest name."""
    found = [path for path in place.parent.glob(place.name) if path.is_file()]
    return min(found, key=lambda path: (len(path.name), path.name), default=None)


def find(row: Published, weights: str | Path) -> Path | None:
    """A published file on this machine: in a folder, with or without the repository's name or its
    folders; for "released" in FOLDER, or as downloaded once."""
    released = str(weights) == "released"
    folder = FOLDER if released else Path(weights)
    places = [folder / row.repository.split("/")[1] / row.file, folder / row.file,
              folder / Path(row.file).name]
    found = next((path for place in places if (path := shortest(place))), None)
    return found or (cached(row) if released else None)


def cached(row: Published) -> Path | None:
    """A published file as it was downloaded once."""
    # The cache has a folder for each state of a repository; the newest first.
    cache = Path(constants.HF_HUB_CACHE) / f"models--{row.repository.replace('/', '--')}"
    states = sorted(cache.glob("snapshots/*"), key=lambda p: p.stat().st_mtime, reverse=True)
    return next((path for state in states if (path := shortest(state / row.file))), None)


class Absent(InputError):
    """There is no such file, where one could have been."""


def download(row: Published, option: str, folder: Path, ask: bool = True) -> Path:
    """Gets a file from the hub (not if not `ask`), which gives none its name before it is whole.
    Raises InputError, which names the `option` and says what to put into `folder`, if it cannot be
    had."""
    try:
        if not ask:
            raise FileNotFoundError
        # Also where the name is known: the download itself would try for minutes.
        names = (s.rfilename for s in model_info(row.repository, timeout=PATIENCE).siblings)
        name = min((n for n in names if fnmatch(n, row.file)), key=len, default=row.file)
        return Path(hf_hub_download(row.repository, name, etag_timeout=PATIENCE))
    except errors.GatedRepoError:
        reason = f"{row.repository} wants its licence accepted"
    except (errors.LocalEntryNotFoundError, ConnectionError):
        reason = f"{row.repository} cannot be reached"
    except errors.RepositoryNotFoundError:
        reason = f"{row.repository} is not there, or not for you"
    except (errors.EntryNotFoundError, FileNotFoundError):
        reason = f"{row.file} is missing"
    except Exception as error:  # noqa: BLE001 (time-outs change their class with versions)
        if getattr(error, "errno", None) in (ENOSPC, EDQUOT, EACCES, EPERM, EROFS):
            raise OSError(f"{constants.HF_HUB_CACHE}: {error.strerror}; downloads are kept there: "
                          "make room, or set HF_HOME to another folder") from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"{row.repository} does not answer ({type(error).__name__})" if not status else (
            f"{row.repository} refuses (HTTP {status}: see to your token, or try again later)")
    licence = " (accept its licence there and log in with `hf auth login`)" if row.gated else ""
    like = "a file like " * ("*" in row.file)
    raise (Absent if reason.endswith("missing") else InputError)(
        f"{option}: {reason}; get {like}{row.file} from https://huggingface.co/"
        f"{row.repository}{licence} and put it into {(folder / row.file).parent}")


def obtain(weights: str | Path) -> dict[str, Path]:
    """The published files of a folder, or of "released", by part; there those that are missing are
    downloaded. Raises InputError for the first that cannot be had."""
    files = {row.part: path for row in reversed(FILES) if (path := find(row, weights))}
    ask = str(weights) == "released"
    folder = FOLDER if ask else Path(weights)
    if not files and str(weights) != "released":
        lack = "holds no config.json, nor" if Path(weights).is_dir() else "no folder; give one of"
        if (Path(weights) / "config.json").exists():
            lack = "is a weights folder already, and holds none of"
        raise InputError(f"{weights}: {lack} the released model's files (see --list-weights)")
    for part in dict.fromkeys(row.part for row in FILES if row.part not in files):
        problem = None
        for row in (row for row in FILES if row.part == part and part not in files):
            try:
                files[part] = download(row, f"weights {weights}", folder, ask)
            except InputError as error:
                problem = problem or error
        if problem and part not in files:
            if part != OPTIONAL or not isinstance(problem, Absent):
                raise problem
            warn(f"without autoguidance: {problem}")
    return files


def listing(weights: str | Path) -> str:
    """A line for each published file: whether it is here, its size, its use, and where it is."""
    places = f"{FOLDER}, {constants.HF_HUB_CACHE}" if str(weights) == "released" else weights
    folder = FOLDER if str(weights) == "released" else Path(weights)
    converted = (folder / "config.json").exists()
    lines = [f"looked for in {places}" + "; not needed, converted there already" * converted]
    for row in FILES:
        path = find(row, weights)
        size = f"{path.stat().st_size / 1e9:.2f}" if path else f"~{row.gigabytes}"
        lines.append(f"{'found' if path else 'missing':8}{size:>5} GB  {row.purpose:37}"
                     f"{path or f'{row.repository}: {row.file}'}{' (gated)' if row.gated else ''}")
    return "\n".join(lines)


# ---- reading -----------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, in its own names and precision, mapped from the disk: they
    fill memory only as they are used. Pickles may not run anything. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; name one that is there")
    try:
        if path.suffix == ".safetensors":
            check_readable(path)
            return load_file(path)
        content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files raise nearly anything
        if explained(error):  # no right to read it, or too little memory
            raise
        if more := re.search(r"[Uu]nsupported (?:\w+:? )?GLOBAL (\S+)", str(error)):
            raise InputError(f"{path}: refused, reading it would run code ({more[1]}): more than "
                             "tensors and plain values is in it") from None
        reason = str(error).strip().split("\n")[0][:100]
        raise InputError(f"{path}: damaged or cut off ({reason}); get it again") from None
    for entry in ("module", "model"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise InputError(f"{path}: holds no tensors by name; get it again")
    return content


def check_stage(part: str, path: Path, published: dict[str, Tensor]) -> None:
    """Raises InputError, with both names, where a stage's checkpoint stands for another part."""
    for stage, mark in MARKS.items():
        if any(name.endswith(mark) for name in published) and not part.startswith(stage):
            raise InputError(f"{path}: a checkpoint of {stage} stands where one of {part} belongs; "
                             "exchange the files")


def translated(part: str, path: Path, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published file under our names."""
    check_stage(part, path, published)
    tensors = autoencoder(published) if part == "vae" else renamed(part, published)
    # Of training with masks; wav2vec2's file lacks it.
    if part in ("wavlm", "wav2vec2") and (layer := "feature_projection.projection.bias") in tensors:
        tensors.setdefault("masked_spec_embed", torch.zeros_like(tensors[layer]))
    return tensors


def check_tensors(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raises InputError where the tensors of a file are not those of `module`, or damaged."""
    check_names(path, module, {name: tuple(v.shape) for name, v in tensors.items()})
    check_values(path, module, tensors)


def released_parts(files: dict[str, Path], model: KeyFace, dtype: torch.dtype,
                   ) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Name, module (maybe on the meta device) and tensors of each part of `model`: networks in
    `dtype`, the rest in float32. Raises InputError for a file that is not what it is to be."""
    if "interp_bad" not in files:
        model.interp_bad = None
    decoder, projection = {}, {}
    for part, module in model.parts().items():
        path = files[part]
        published = read(path)
        tensors = translated(part, path, published)
        if part == "keyframe":
            decoder = {name.partition("first_stage_model.")[2]: value for name, value in
                       published.items() if "first_stage_model.decoder." in name}
        elif part == "interp":
            projection = {k: v for k, v in tensors.items() if k.startswith("audio_proj.")}
        elif part == "interp_bad":
            tensors |= projection  # the bad network is told what the good one is
        check_tensors(path, module, tensors)
        surplus = Counter(re.sub(r"^_forward_module\.", "", name).split(".")[0]
                          for name in published if not renamed(part, {name: None}))
        if surplus:
            counts = ", ".join(f"{name} ({n})" for name, n in sorted(surplus.items()))
            print(f"{path.name}: tensors left out, not needed here: {counts}")
        if part == "vae":
            check_same(path, tensors, files["keyframe"], decoder)
        dtype_here = dtype if part in NETWORKS else torch.float32
        yield part, module, {k: v.to(model.device, dtype_here) for k, v in tensors.items()}


def load(weights: str | Path, device: str = "cpu", low_memory: bool = False,
         config: Config | None = None) -> KeyFace:
    """The model of a weights folder, of a folder of the published files, or of "released": these,
    from FOLDER if they have been converted there, else as downloaded. Published networks are in
    bfloat16, on a CPU in float32. Raises InputError where nothing usable is there."""
    released = str(weights) == "released"
    folder = FOLDER if released else Path(weights)
    held = [path.name for path in folder.glob("*")] if os.path.isdir(folder) else []
    if "config.json" in held or not (held or released):
        return KeyFace.load(folder, device, low_memory)
    files = obtain(weights)
    with torch.device("meta"):
        model = KeyFace(config or Config(), device, low_memory)
    dtype = torch.float32 if model.device.type == "cpu" else torch.bfloat16
    for _, module, tensors in released_parts(files, model, dtype):
        module.load_state_dict(tensors, assign=True)
        module.eval().requires_grad_(False).to("cpu" if low_memory else device)
    return model


def convert(weights: str | Path, out: Path, dtype: torch.dtype = torch.bfloat16,
            config: Config | None = None) -> None:
    """Writes the published files of a folder, or of "released", as the weights folder `out`.
    config.json comes last: without it a half-written folder is none."""
    make_folder(out)
    files = obtain(weights)
    with torch.device("meta"):
        model = KeyFace(config or Config())
    for part, _, tensors in released_parts(files, model, dtype):
        for name in ("config.json", f"{OPTIONAL}.safetensors") if part == "keyframe" else ():
            (out / name).unlink(missing_ok=True)  # of an earlier set; once a part of this is good
        header = {"config": asdict(model.config.vae)} if part == "vae" else {}
        save_part(out / f"{part}.safetensors", tensors, half=False, source=files[part].name,
                  **header)
        print(f"wrote    {out / part}.safetensors from {files[part]}", flush=True)
    save_config(model.config, out)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m tools.released",
                    description="The released model's files to a weights folder.")
    add = parser.add_argument
    add("dir", metavar="DIR", help='folder of the published files, or "released": download them')
    add("out", metavar="OUT", type=Path, help="weights folder to write")
    add("--dtype", choices=("bf16", "fp32"), default="bf16", help="precision of the networks")
    args = parser.parse_args(argv)
    convert(args.dir, args.out, torch.bfloat16 if args.dtype == "bf16" else torch.float32)


if __name__ == "__main__":
    sys.exit(run(main))
