"""Pictures, sound and video, in and out.

All but still pictures goes through the ffmpeg binary that `imageio-ffmpeg` ships. Pictures are
(H, W, 3) uint8 RGB, sound is (L,) float32 in [-1, 1] at 16 kHz, video has 25 frames a second: one
frame lasts 640 samples. What a user gave wrong is an `InputError`: one line, exit status 2.
"""

import os
import re
import struct
import subprocess
import tempfile
import warnings
import wave as wav_file
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from tools.cli import COMMENT, InputError, replacing, scratch, warn

FPS = 25                    # fixed, as audio.py gives a frame two features of 20 ms each
SAMPLE_RATE = 16000
FRAME_SAMPLES = SAMPLE_RATE // FPS
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp")


def frame_count(samples: int) -> int:
    """Video frames that `samples` of 16 kHz sound last: ceil(samples / 640)."""
    return -(-samples // FRAME_SAMPLES)


def _ffmpeg() -> str:
    """The ffmpeg binary. Raises OSError where there is none."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise OSError("no ffmpeg for this machine in imageio-ffmpeg; install ffmpeg") from None


# ----------------------------------------------------------------------------------------- reading

class _Track(NamedTuple):
    """One sound or video track of a file."""

    number: str                 # "0:1": how ffmpeg's -map calls it
    codec: str
    default: bool               # marked as the one to play


def _command(path: Path, options: list[str]) -> list[str]:
    """Of ffmpeg with a file as input."""
    # With "file:" and the whitelist, odd names and playlists open local files alone.
    return [_ffmpeg(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info",
            "-protocol_whitelist", "file,pipe", "-i", f"file:{path}", *options]


def _check_alive(path: Path, status: int) -> None:
    """Raises OSError where ffmpeg was killed, most likely for want of memory, and InputError where
    it broke down by itself."""
    if status == -9:
        raise OSError(f"{path}: ffmpeg was killed while it read this; try again with more free "
                      "memory")
    if status < 0:
        raise InputError(f"{path}: ffmpeg broke down over it (signal {-status}); convert it to WAV "
                         "or MP4")


def _run_ffmpeg(path: Path, options: list[str]) -> tuple[int, bytes, str]:
    """Runs ffmpeg with a file as input: its exit status, its standard output and what it says."""
    done = subprocess.run(_command(path, options), check=False, stdin=subprocess.DEVNULL,
                          capture_output=True)
    _check_alive(path, done.returncode)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def _tracks(path: Path, kind: str) -> tuple[_Track, _Track | None]:
    """The track of a kind ("Audio", "Video") of a file, and that of the other kind if it has one.

    Of several it is the first that is marked as the default, else the first. A cover is no video.
    """
    content = "sound" if kind == "Audio" else "video"
    if not path.is_file():
        lack = "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {lack}; give one with {content}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read; check its permissions")
    report = _run_ffmpeg(path, [])[2]
    found = {"Audio": [], "Video": []}
    for each in re.finditer(r"(?m)^\[info\] +Stream #(0:\d+)[^ ]*: (Audio|Video): (\w+).*", report):
        if "(attached pic)" not in each[0]:
            found[each[2]].append(_Track(each[1], each[3], "(default)" in each[0]))
    sound, video = (max(tracks, key=lambda track: track.default, default=None)
                    for tracks in found.values())
    track, other = (sound, video) if kind == "Audio" else (video, sound)
    if track is None:
        lack = (f"holds no {content}" if re.search(r"(?m)^\[info\] +Stream #0", report)
                else "empty, damaged or not a sound or video file")
        raise InputError(f"{path}: {lack}; give a file with {content}, such as WAV or MP4")
    return track, other


def _with(other: _Track | None) -> list[str]:
    """Options that let ffmpeg read a second track, for nothing but its time stamps. Time zero is
    where the earliest of the tracks in use begins: with both in use it is the same for both."""
    return ["-map", other.number, "-c", "copy", "-f", "null", "-"] if other else []


def _decode(path: Path, track: _Track, other: _Track | None,
            options: list[str]) -> tuple[bytes, str, bool]:
    """What ffmpeg makes of a track of a file, what it says about it, and whether it is damaged."""
    status, data, report = _run_ffmpeg(
        path, ["-map", track.number, *options, "pipe:1", *_with(other)])
    if not data:
        raise InputError(f"{path}: could not be decoded; convert it to WAV or MP4")
    return data, report, _damaged(status, report)


def _damaged(status: int, report: str) -> bool:
    """Whether ffmpeg says that a file is damaged."""
    streamed = "Ignoring maximum wav data size" in report       # written to a pipe: no length in it
    damaged = re.search(r"(?m)^\[.*(corrupt|ended prematurely|partial file)", report)
    failed = re.search(r"(?m)^(\[[^]]* @ [^]]*\] )*\[(error|fatal)\]", report)
    return bool(status or failed or damaged and not streamed)


def _resample(video: _Track | None, extra: str = "") -> str:
    """The filter for sound. Where time stamps leave a gap in a recording, or before the sound of a
    video, there is silence: mouths stay in step. Sound alone begins with its first sample."""
    return (f"aresample=async=1{extra}:first_pts=0" if video
            else f"aresample=async=1{extra},asetpts=PTS-STARTPTS")


def _channels(path: Path, extra: str = "") -> tuple[np.ndarray, str, bool]:
    """Sound of a file, (L, channels) at 16 kHz, what ffmpeg says, and whether it is damaged."""
    track, video = _tracks(path, "Audio")
    # Sun's AU: a header of 24 bytes or more, then samples, all big-endian.
    data, report, damaged = _decode(path, track, video, [
        "-f", "au", "-c:a", "pcm_f32be", "-af", _resample(video, extra), "-ar", str(SAMPLE_RATE)])
    offset, _, _, _, channels = struct.unpack(">5I", data[4:24])
    size = (len(data) - offset) // (4 * channels) * channels
    return np.frombuffer(data, ">f4", size, offset).reshape(-1, channels), report, damaged


def _mix(path: Path, sound: np.ndarray, report: str) -> tuple[np.ndarray, str]:
    """One channel (L,) of several (L, channels), and a warning where that took a choice."""
    mixed = sound
    if sound.shape[1] > 2:
        with suppress(InputError):      # of channels that ffmpeg cannot place: then all alike
            mixed = _channels(path, ":ochl=stereo:rematrix_maxval=100")[0]
    with np.errstate(all="ignore"):
        wave = mixed.mean(1, dtype=np.float32)
        loudness = [np.linalg.norm(channel) for channel in sound.T]
        if re.search(r"Hz, \d\.1", report):       # the channel of low effects holds no voice
            loudness[min(3, len(loudness) - 1)] = 0
        loudest = int(np.argmax(loudness))
        if len(loudness) == 1 or not np.linalg.norm(wave) < 10 ** (-10 / 20) * loudness[loudest]:
            return wave, ""
    return (sound[:, loudest].astype(np.float32),
            f"mixed, its channels are far weaker than channel {loudest + 1}, which is used alone")


def read_audio(source: Path | str | np.ndarray) -> np.ndarray:
    """Sound of any file that ffmpeg reads (a video's, too), or a 16 kHz array that is checked.

    Returns (L,) float32 in [-1, 1] at 16 kHz, L >= 1, mixed to one channel: the mean of two, more
    first mixed to stereo by their places. The sound of a video begins where the video's clock does,
    with silence if it comes late: sample 640 t belongs to frame t of `video_blocks`. Sound alone
    begins with its first sample. Of damaged files what can be decoded is used, with a warning.
    """
    notes = []
    if isinstance(source, np.ndarray):
        if source.dtype.kind != "f":        # whole numbers have a range of their own
            raise InputError(f"audio: floats in [-1, 1] were expected, not {source.dtype}")
        source, wave = "audio", source.astype(np.float32)
        if wave.ndim != 1 or not len(wave):
            raise InputError(f"audio: an array (L,) was expected, not of shape {wave.shape}")
    else:
        sound, report, damaged = _channels(Path(source))
        if not len(sound):
            raise InputError(f"{source}: holds no sound; give a longer one")
        wave, note = _mix(Path(source), sound, report)
        # Compressed sound that stops early is no error to ffmpeg: the stated duration tells, where
        # it is that of the only track.
        seconds = len(wave) / SAMPLE_RATE
        stated = re.search(r"Duration: (\d+):(\d+):([\d.]+), start: (-?[\d.]+)", report)
        alone = len(re.findall(r"(?m)^\[info\] +Stream #0:\d+(?!.*attached pic)[^ ]*: ",
                               report.partition("Stream mapping:")[0])) == 1
        lacking = 0.0
        if stated and alone and "Estimating duration" not in report:
            hours, minutes, rest, start = map(float, stated.groups())
            lacking = 3600 * hours + 60 * minutes + rest - max(0, start) - seconds
        if damaged or lacking > 0.25:
            of = f" of {seconds + lacking:.2f}" if lacking > 0.25 else ""
            notes.append(f"cut off or damaged; {seconds:.2f}{of} s of sound can be used")
        if note:
            notes.append(note)
        elif np.abs(wave).max() < 1e-4:
            notes.append("its sound is silent throughout")
    if not np.isfinite(wave).all():
        raise InputError(f"{source}: holds samples that are not finite; clean or convert it")
    if np.abs(wave).max() > 2:
        notes.append("louder than 1 and cut off there; divide whole numbers by their largest")
    if notes:
        warn(f"{source}: {'; '.join(notes)}")
    return wave.clip(-1, 1)


def loudness(path: Path | str) -> np.ndarray | None:
    """Root mean square of a file's sound over time and channels, -60 to 0 dB as 0 to 1, a number a
    frame: (N,). All 0 for a silent one; None, and a warning, where no sound can be read. It goes
    through the disk, so memory does not grow with its length."""
    path, power = Path(path), []
    try:
        track, video = _tracks(path, "Audio")
    except InputError as error:
        return warn(str(error))
    with scratch() as folder:
        sound = Path(folder, "sound.au")
        status, _, report = _run_ffmpeg(path, [
            "-map", track.number, "-f", "au", "-c:a", "pcm_f32be", "-af", _resample(video), "-ar",
            str(SAMPLE_RATE), str(sound), *_with(video)])
        if "No space left" in report:
            raise OSError(f"{sound}: no space left for the sound of {path}")
        if _damaged(status, report):
            warn(f"{path}: its sound is cut off or damaged; what can be used is used")
        if not sound.is_file():
            return None
        with sound.open("rb") as file:
            offset, _, _, _, channels = struct.unpack(">5I", file.read(24)[4:])
            file.seek(offset)
            frame = FRAME_SAMPLES * channels
            while len(samples := np.fromfile(file, ">f4", 1000 * frame)):
                samples = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
                power.append(np.square(samples, dtype=np.float64).mean(1))
    power = np.concatenate([*power, []])
    if not len(power) or not np.isfinite(power).all():
        return warn(f"{path}: its sound is empty or not finite")
    return np.where(power > 1e-6, 1 + np.log10(power.clip(1e-6)) / 6, 0)


# What a file is by its first bytes, where it is no picture that can be opened.
KINDS = ((rb".{4}ftyp(heic|heix|hevc|heim|heis|hevx|mif1|msf1)", "a HEIC picture"),
         (rb".{4}ftypavi", "an AVIF picture"),
         (rb"(.{4}ftyp(M4A|M4B)|RIFF.{4}WAVE|ID3|fLaC|\xff[\xf0-\xff])", "a sound"),
         (rb"(.{4}ftyp|.{4}moov|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV|\x00\x00\x01\xba)", "a video"),
         (rb"OggS", "a sound or a video"), (rb"%PDF", "a PDF"),
         (rb"\s*(<\?xml.*)?<svg", "an SVG drawing"))


def _kind(path: Path) -> str:
    """What a file that could not be opened as a picture is."""
    with open(path, "rb") as file:
        head = file.read(1000)
    return next((f"{name}, which cannot be used here" for pattern, name in KINDS
                 if re.match(pattern, head, re.DOTALL)), "empty, cut off, damaged or not a picture")


def open_image(path: Path | str) -> np.ndarray:
    """First picture of a file, turned upright, as RGB over white: (H, W, 3) uint8."""
    path = Path(path)
    try:
        if path.is_fifo():      # which would be waited for
            raise InputError(f"{path}: not a file; give a PNG or JPEG")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # of damage, which is told below in one line
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
            image.load()
            try:
                image = ImageOps.exif_transpose(image)
            except Exception as error:  # noqa: BLE001 (of EXIF that some programs spoil)
                warn(f"{path}: its EXIF cannot be read ({error}), so the picture is not turned")
            if image.mode.startswith(("I", "F")):                   # 16 or 32 bits a pixel
                grey = np.nan_to_num(np.asarray(image, np.float64))
                largest = grey.max()
                deep = image.mode.startswith("I;16") or largest > 255
                # Cameras put 12 bits into 16.
                white = (4095 if largest < 4096 else 65535) if deep else (
                    1 if image.mode == "F" and largest <= 1 else 255)
                image = Image.fromarray((grey * (255 / white)).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{path}: more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; "
                         "give a smaller picture") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise nearly anything)
        reason = getattr(error, "strerror", None) or _kind(path)
        raise InputError(f"{path}: {reason}; give a PNG or JPEG that can be opened") from None


def read_image(source: Path | str | np.ndarray, size: int | None = None,
               crop: tuple[int, int, int] | None = None) -> np.ndarray:
    """A square of a picture, from a file or a uint8 array (H, W) or (H, W, 3): `crop` is its left,
    top and side in pixels, and without it the square is the largest one in the middle.

    Resized to (size, size, 3) uint8; without `size` it keeps the side of that square. One line
    tells of a picture of which more than a quarter was cut away without `crop`.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim < 2 or source.shape[2:] not in ((), (3,)):
            raise InputError("image: an array (H, W, 3) of uint8 was expected, "
                             f"not {source.shape} of {source.dtype}")
        source, pixels = "image", source
    else:
        pixels = open_image(source)
    height, width = pixels.shape[:2]
    side = min(width, height)
    if side == 0 or max(width, height) > 50 * side:
        raise InputError(f"{source}: {width} x {height} pixels cannot hold a face; give a picture "
                         "of it")
    left, top = (width - side) // 2, (height - side) // 2
    if crop:
        left, top, side = crop
        if left + side > width or top + side > height:
            raise InputError(f"--crop: {left},{top},{side} reaches out of {source}, which has "
                             f"{width} x {height} pixels; give a square within it")
    elif 4 * side < 3 * max(width, height):
        warn(f"{source}: of {width} x {height} pixels only the square of {side} in the middle is "
             f"used; choose another one with --crop X,Y,SIDE (this is {left},{top},{side})")
    image = Image.fromarray(pixels[top:top + side, left:left + side]).convert("RGB")
    if size is not None and size != side:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(image)


def video_shape(path: Path | str) -> tuple[int, int, float]:
    """Width and height of a video as it is shown, and its frames a second. Raises InputError."""
    path = Path(path)
    number = _tracks(path, "Video")[0].number
    said = _run_ffmpeg(path, [])[2].partition(f"Stream #{number}")[2].partition("Stream #")[0]
    if not (sides := re.search(r" (\d+)x(\d+)[ ,]", said)):
        raise InputError(f"{path}: its pictures cannot be decoded; convert it to MP4")
    width, height = map(int, sides.groups())
    if ratio := re.search(r"\bSAR ([1-9]\d*):([1-9]\d*)", said):
        width = width * int(ratio[1]) // int(ratio[2])
    rate = re.search(r"([\d.]+)(k?) (fps|tbr)", said)
    turned = re.search(r"rotation of (-?\d+)", said)
    if turned and int(turned[1]) % 180:
        width, height = height, width
    return width, height, float(rate[1]) * (1000 if rate[2] else 1) if rate else FPS


def videos_in(path: Path) -> dict[str, Path]:
    """The videos of a folder by their names without ending, or the one that is named."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give one of videos")
    if not path.is_dir():
        return {path.stem: path}
    videos = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS
                    and not p.name.startswith("."))
    found = {p.stem: p for p in videos}
    if not found:
        raise InputError(f"{path}: holds no video; give a folder of {', '.join(VIDEOS)}")
    if left := [p.name for p in videos if p not in found.values()]:
        warn(f"{path}: {', '.join(left)} left out, beside videos of the same names")
    return found


def video_blocks(path: Path | str, size: int, square: tuple[int, int, int] | None = None,
                 length: int = 1500) -> Iterator[np.ndarray]:
    """Frames at 25 a second, `length` at a time: (n, size, size, 3) uint8. `square` is left, top
    and side of the part to use, in pixels of the video, and without it the largest in the middle.

    The first frame is held from the start of the file's clock, which is that of `read_audio`.
    """
    path = Path(path)
    track, other = _tracks(path, "Video")
    left, top, side = square or ("(iw-ow)/2", "(ih-oh)/2", "min(iw,ih)")
    if square:  # ffmpeg moves a square that reaches out, but refuses one that is too big
        side = f"if(lte({left}+{side},iw)*lte({top}+{side},ih),{side},2*iw)"
    view = (f"fps={FPS}:start_time=0,scale='iw*sar':ih,"    # pixels need not be square
            f"crop='{side}':'{side}':'{left}':'{top}',"
            f"scale={size}:{size}:flags=area")
    command = _command(path, ["-map", track.number, "-vf", view, "-f", "rawvideo", "-pix_fmt",
                              "rgb24", "pipe:1", *_with(other)])
    count, frame = 0, size * size * 3
    with tempfile.TemporaryFile() as said:
        # (Where no more blocks are wanted, the end of the pipe ends ffmpeg.)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=said) as process:
            while n := len(data := process.stdout.read(length * frame)) // frame:
                count += n
                yield np.frombuffer(data, np.uint8, n * frame).reshape(n, size, size, 3)
        said.seek(0)
        report = said.read().decode(errors="replace")
    _check_alive(path, process.returncode)
    if not count and square and "Invalid too big" in report:
        raise InputError(f"{path}: the square {','.join(map(str, square))} reaches out of the "
                         "picture; give one within it")
    if not count:
        raise InputError(f"{path}: could not be decoded; convert it to MP4")
    if _damaged(process.returncode, report):
        warn(f"{path}: cut off or damaged; {count} frames at {FPS} a second can be used")
    if re.search(r"Stream #.*Video:.*(smpte2084|arib-std-b67)", report):
        warn(f"{path}: is HDR and used as if it were not, with pale colours; convert it to SDR")


# ----------------------------------------------------------------------------------------- writing

def write_wav(path: Path, wave: np.ndarray) -> None:
    """Writes sound (L,) at 16 kHz as WAV of 16 bits."""
    with wav_file.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(np.rint(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())


def film_side(size: int) -> int:
    """The side in pixels of a film of frames of `size`, where none is asked for: it is no smaller
    than can be watched."""
    return max(size, 256)


def _write_sound(folder: Path, wave: np.ndarray, source: Path | None) -> Path:
    """The sound of a film, as MP4: that of the file `source`, else the wave."""
    target = folder / "sound.m4a"
    common = ["-map_metadata", "-1", "-map_chapters", "-1", "-f", "mp4", "-y", f"file:{target}"]
    if source is not None:
        track, video = _tracks(source, "Audio")
        encode = ["-c:a", "aac", "-b:a", "160k", "-af", _resample(video)]
        copy = [["-c:a", "copy"]] if track.codec in ("aac", "mp3") else []
        for options in (*copy, encode):         # not all that is called MP3 may be in an MP4
            if not _run_ffmpeg(source, ["-map", track.number, "-t", str(len(wave) / SAMPLE_RATE),
                                        *options, *common, *_with(video)])[0]:
                return target
        warn(f"{source}: its sound cannot go into a video as it is; what the model hears does")
    plain = folder / "sound.wav"
    write_wav(plain, wave)
    status, _, report = _run_ffmpeg(plain, ["-c:a", "aac", "-b:a", "64k", *common])
    if status:
        raise OSError(f"ffmpeg failed: {_last_words(report, status)}")
    return target


def _last_words(report: str, status: int) -> str:
    """The last line that ffmpeg said, without who said it."""
    lines = report.strip().splitlines() or [
        f"killed by signal {-status}" if status < 0 else f"status {status}"]
    return re.sub(r"^.*? @ .*?] ", "", lines[-1])


def write_video(path: Path | str, frames: Iterable[np.ndarray], wave: np.ndarray,
                size: int, sound: Path | str | None = None) -> int:
    """Writes frames (h, w, 3) uint8, enlarged to `size` x `size`, with sound; returns their number.

    25 fps H.264, yuv420p, BT.709 colours, ready to play while it loads. `sound` names the file that
    `read_audio` took the wave from: its AAC or MP3 is copied, and any other sound encoded as AAC
    at its own rate with its own channels. Without it, and where that fails, the wave is heard.
    Frames are taken from the iterator one by one. Nothing is left at `path` or beside it when
    anything goes wrong.
    """
    if size < 2 or size % 2:
        raise InputError(f"{path}: H.264 has no pictures of {size} x {size} pixels; give an even "
                         "size")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: no frames to write; give one or more")
    height, width, _ = first.shape
    with replacing(Path(path)) as temporary, tempfile.TemporaryFile() as log:
        heard = _write_sound(temporary.parent, wave, sound and Path(sound))
        view = (f"scale={size}:{size}:flags=lanczos:out_color_matrix=bt709:out_range=tv,"
                "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709")
        command = [
            _ffmpeg(), "-v", "error", "-y", "-f", "rawvideo",
            "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS), "-i", "pipe:0",
            "-copyts", "-i", f"file:{heard}", "-pix_fmt", "yuv420p", "-vf", view,
            "-c:v", "libx264", "-crf", "18", "-c:a", "copy",
            "-movflags", "+faststart", "-metadata", f"comment={COMMENT}", f"file:{temporary}"]
        # Its own session: Ctrl-C reaches this program alone, which then stops ffmpeg.
        ffmpeg = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log,
                                  start_new_session=True)
        count = 0
        try:
            for frame in chain((first,), frames):
                try:
                    ffmpeg.stdin.write(np.ascontiguousarray(frame).data)
                except BrokenPipeError:
                    break                           # it ended early: its status says so below
                count += 1
        except BaseException:
            ffmpeg.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                ffmpeg.stdin.close()
            status = ffmpeg.wait()
        if status:
            log.seek(0)
            said = _last_words(log.read().decode(errors="replace"), status)
            raise OSError(f"{path}: ffmpeg failed: {said}")
    return count
