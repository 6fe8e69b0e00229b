"""Weights on disk: a folder of config.json and one safetensors file a part; never a pickle
(training state is one, read with `weights_only`).

Everything is written to a temporary name and then renamed, and read with errors that name the file.
"""

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.cli import InputError, explained, replacing, warn

T = TypeVar("T")
KEPT = 2                    # training states of each name, the newest and those before it
LARGEST = 10**6             # number that makes sense in a config
# Least and largest where others would crash, or end in values that are not finite.
BOUNDS = {
    "sigma_max": (0.003, LARGEST), "p_mean": (-5, 5), "p_std": (0, 5), "lambda_lower": (0, LARGEST),
    "lambda_eyes": (0, LARGEST), "pixel_weight": (0, LARGEST), "pixel_share": (0, 1),
    "drop_identity": (0, 1), "drop_audio": (0, 1),
    "scale_factor": (1e-6, LARGEST), "latent_std": (1e-6, LARGEST), "emotion_dim": (0, LARGEST),
    "overlap_frames": (0, LARGEST),
    **dict.fromkeys(("id_guidance", "audio_guidance", "autoguidance"), (-100, 100))}

# Fields that folders of earlier versions lack; their defaults are what those meant.
LATER = {"patch", "finetune", "checkpoint_activations", "without", "pixel_share", "lambda_eyes"}


def _value(hint: object, value: object, name: str, where: str) -> object:
    """A JSON value, checked against a field's annotation and name. Raises InputError."""
    if type(None) in get_args(hint):                        # "X | None"
        if value is None:
            return None
        hint = get_args(hint)[0]
    if is_dataclass(hint):
        return from_dict(hint, value, f"{where}: {name}")
    if get_args(hint) and isinstance(value, list):          # tuple[X, ...]
        return tuple(_value(get_args(hint)[0], each, name, where) for each in value)
    fits = type(value) is hint or (hint is float and type(value) is int)
    kind = {int: "whole number", float: "number", bool: "true or false", str: "string"}.get(
        hint, "list")
    if hint in (int, float):
        low, high = BOUNDS.get(name, (1 if hint is int else -LARGEST, LARGEST))
        fits, kind = fits and low <= value <= high, f"{kind} from {low} to {high}"  # nor is it NaN
    if not fits:
        raise InputError(f"{where}: {name}: {json.dumps(value)[:40]} does not fit; {kind} expected")
    return value


def from_dict(cls: type[T], values: dict, where: str) -> T:
    """A dataclass from its JSON form, nested ones too. Raises InputError if the fields differ."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: an object is expected, not {json.dumps(values)[:40]}")
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    unknown, missing = sorted(set(values) - names), sorted(names - set(values) - LATER)
    for kind, wrong in (("unknown", unknown), ("missing", missing)):
        if wrong:
            raise InputError(f"{where}: {kind} field {wrong[0]!r}; use a config.json written by "
                             "this version")
    result = {}
    for name, value in values.items():
        result[name] = _value(hints[name], value, name, where)
    return cls(**result)


def load_config(cls: type[T], folder: str | Path) -> T:
    """The dataclass `cls` from `folder`/config.json. Raises InputError where it does not fit."""
    path = Path(folder) / "config.json"
    if not os.path.isdir(folder):  # (Path's own fails for long names)
        raise InputError(f"{folder}: no such folder; give one of weights, with config.json")
    if not path.is_file():
        raise InputError(f"{path}: missing; give a folder that training has written, or make one "
                         "of the published files with python -m tools.released")
    with fitting(path):
        return from_dict(cls, read_json(path), str(path))


def read_json(path: Path) -> object:
    """What a JSON file holds. Raises InputError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def overlaid(whole: object, part: object) -> object:
    """A JSON value in which `part`, at any depth, says what is otherwise."""
    if not (isinstance(whole, dict) and isinstance(part, dict)):
        return part
    return whole | {name: overlaid(whole.get(name), value) for name, value in part.items()}


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turns what is raised for numbers that no model can have into an InputError about `path`."""
    try:
        yield
    except (InputError, OSError, MemoryError, RuntimeError):        # torch's want of memory
        raise
    except Exception as error:  # noqa: BLE001 (modules, and transformers, raise nearly anything)
        raise InputError(f"{path}: no model has these numbers ({error}); use a config.json written "
                         "by this version") from None


def save_config(config: object, folder: Path) -> None:
    """Writes a dataclass as `folder`/config.json."""
    save_text(folder / "config.json", json.dumps(asdict(config), indent=1) + "\n")


def check_names(path: Path, module: nn.Module, shapes: dict[str, tuple[int, ...]],
                others: dict[str, nn.Module] | None = None) -> None:
    """Raises InputError if there are names in the file `path`, or shapes, that are not the
    module's, or names of the module's that are not there: the first five of each kind, and how many
    more. Of `others`, by name, the one is named that the file would fit instead."""
    def of(other: nn.Module) -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in other.state_dict().items()}

    expected = of(module)
    if shapes == expected:
        return
    for name, other in (others or {}).items():
        if shapes == of(other):
            raise InputError(f"{path}: holds the weights of {name}, not of {path.stem}; put the "
                             "right file there")
    kinds = ("missing", [k for k in expected if k not in shapes]), (
        "not belonging", [k for k in shapes if k not in expected]), (
        "of another shape", [f"{k} {shapes[k]} for {v}" for k, v in expected.items()
                             if shapes.get(k, v) != v])
    problems = [f"{kind}: {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                for kind, names in kinds if names]
    raise InputError(f"{path}: not the weights that are to be here; {'; '.join(problems)}")


def check_values(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raises InputError where a tensor of the file `path`, under the module's name, is not finite,
    or whole numbers where the module's are not."""
    expected = module.state_dict()
    for name, value in tensors.items():
        if (value.is_floating_point() != expected[name].is_floating_point()
                or value.layout is not torch.strided or value.is_meta):
            raise InputError(f"{path}: {name} holds {value.dtype}, {value.layout} on "
                             f"{value.device}; get the file again")
        if not value.float().isfinite().all():
            raise InputError(f"{path}: {name} holds values that are not finite; train or get it "
                             "again")


def check_same(path: Path, ours: dict[str, Tensor], other: Path, theirs: dict[str, Tensor]) -> None:
    """Raises InputError if the autoencoder of the file `path` is not that of which a checkpoint,
    `other`, holds a part. Half precision makes no difference."""
    if not theirs:
        print(f"{other.name}: holds no autoencoder; whether {path.name} is the one it was trained "
              "with cannot be told")
    for name, value in theirs.items():
        alike = name in ours and ours[name].shape == value.shape
        if not alike or (ours[name].float() - value.float()).norm() > 0.05 * value.float().norm():
            raise InputError(f"{path}: not the autoencoder that {other} was trained with ({name} "
                             "differs); get the one of --list-weights")


def check_readable(path: str | Path) -> None:
    """Raises PermissionError, which names the file; `safe_open` says that there is none."""
    with suppress(FileNotFoundError), open(path, "rb"):
        pass


def load_part(path: str | Path, module: nn.Module, device: str | torch.device = "cpu",
              others: dict[str, nn.Module] | None = None) -> None:
    """Loads a safetensors file into `module`, straight to `device`: its tensors take the place of
    the module's, which may be on the meta device, so that nothing is in memory twice. In float32;
    bfloat16 stays as it is but on a CPU. Raises InputError if the file is missing, damaged, or not
    of this module: names and shapes must agree exactly (see `check_names` for `others`)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: missing from the weights folder")
    keep = torch.device(device).type != "cpu" and torch.bfloat16
    check_readable(path)
    try:
        with safe_open(path, "pt", str(device)) as file:
            names = file.keys()
            check_names(path, module, {k: tuple(file.get_slice(k).get_shape()) for k in names},
                        others)
            tensors = {k: v if v.dtype == keep or not v.is_floating_point() else v.float()
                       for k, v in ((k, file.get_tensor(k)) for k in names)}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error}); "
                         "get it again") from None
    check_values(path, module, tensors)
    module.load_state_dict(tensors, assign=True)


def load_metadata(path: str | Path) -> dict[str, str]:
    """The header of a safetensors file that `save_part` wrote: config, step, code version."""
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


def header_number(path: str | Path, name: str) -> float | None:
    """The number `name` of a header, None where it has none. Raises InputError."""
    text = load_metadata(path).get(name)
    try:
        number = None if text is None else float(text)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise InputError(f"{path}: {name} in its header is no number; get the file again")
    return number


def header_config(cls: type[T], path: str | Path) -> T:
    """The dataclass `cls` from the field `config` of a header."""
    try:
        values = json.loads(load_metadata(path).get("config", "null"))
    except ValueError as error:
        raise InputError(f"{path}: its header was tampered with ({error}); get it again") from None
    return from_dict(cls, values, str(path))


def check_header(path: Path, config: object) -> None:
    """Raises InputError where a header's `config` is not the one beside the file: of an autoencoder
    mixed up with another, latents would have other statistics."""
    if "config" in load_metadata(path) and header_config(type(config), path) != config:
        raise InputError(f"{path}: not the part that {path.parent / 'config.json'} describes; "
                         "take both from the same folder")


def save_part(path: str | Path, tensors: dict[str, Tensor], half: bool = True,
              **metadata: object) -> None:
    """Writes a state dict, in fp16 if `half`, with `metadata` (as JSON) in the header."""
    kept = {k: (v.half() if half and v.is_floating_point() else v).detach().cpu().contiguous()
            for k, v in tensors.items()}
    with replacing(Path(path)) as temporary:
        try:
            save_file(kept, temporary, {k: json.dumps(v) for k, v in metadata.items()})
        except SafetensorError as error:  # of a full disk
            raise OSError(f"{path}: {error}") from None


def save_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _states(path: str | Path) -> list[Path]:
    """NAME.state, and the ones before it: NAME.state.1 and so on, the newest first."""
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    return [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, KEPT))]


def save_state(path: str | Path, state: dict) -> None:
    """Writes training state (tensors and plain values), read again by `load_state`. The one before
    is kept under another name."""
    newest, *_ = states = _states(path)
    with replacing(newest) as temporary:
        with open(temporary, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:       # behind which torch hides what the disk said
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            file.flush()
            os.fsync(file.fileno())             # before those that are there give way
        for older, newer in zip(states[:0:-1], states[-2::-1], strict=True):
            if newer.exists():
                os.replace(newer, older)


def load_state(path: str | Path) -> dict:
    """Reads what `save_state` wrote; refuses anything that is not tensors and plain values. Where
    the newest is damaged or was not yet in its place, takes the one before, and warns. Raises
    InputError where there is none."""
    problems = []
    for each in _states(path):
        try:
            with ZipFile(each) as file:         # torch does not look at the checksums
                if file.testzip():
                    raise BadZipFile
            state = torch.load(each, map_location="cpu", weights_only=True)
        except (PermissionError, MemoryError):
            raise
        except FileNotFoundError:
            problems.append(f"{each} does not exist")
        except Exception as error:              # damage has many names
            if explained(error):                # but want of memory is none
                raise
            problems.append(f"{each}: damaged, or not a training state of this program "
                            f"({type(error).__name__})")
        else:
            if problems:
                warn(f"{problems[0]}; going on from the one before, {each.name}")
            return state
    raise InputError(f"{problems[0]}; begin anew, without --resume")


@cache
def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.glob("*.safetensors"))}


@cache
def code_version() -> str:
    """What git called this state of the code when it was first asked, with "-dirty" where a Python
    file was another (results, which programs write, do not count); "unknown" without git."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        name = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False)
    return name + "-dirty" * bool(changed.returncode)
