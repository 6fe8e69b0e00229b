"""A page to play with: `python app.py` prints its address on this machine, and nobody else sees it.

Choose a face, a sound, emotions along time and the settings of the sampler; watch the film being
made by `keyface.KeyFace.animate`, and copy the lines that make the same film without the page. One
film is made at a time. Nothing is fetched from the network, and nothing is sent there.
"""

import argparse
import filecmp
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from emotion import EMOTIONS, emotion_curve
from keyface import Config, KeyFace, Plan
from tools import cli, figures, media, released
from tools.checkpoint import load_config
from tools.cli import AUDIO, EMOTION, HERE, IMAGE, SETTINGS, InputError
from toy import faces, vocalisations, voices, world

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"    # which gradio reads as it is imported
try:
    import gradio as gr
except ImportError:
    sys.exit('app.py: error: the page is made with gradio: pip install -e ".[app]"')

LONGEST, LARGEST = 60, 30       # of a sound in seconds, of an upload in MB
WAITING = 8                     # films in the queue
HEAR = {"sentences with a laugh": None, **{f"a {kind}": kind for kind in vocalisations.KINDS}}
OPTIONS = ("steps", "id_guidance", "audio_guidance", "autoguidance", "seed")
WORKER = ThreadPoolExecutor(1)  # makes the films, one at a time


class Stopped(Exception):
    """The film is no longer wanted."""


# ---- answers ------------------------------------------------------------------------------------

def named(path: str | Path) -> str:
    """What a file is called on the page: the shipped ones by their places, others by their names,
    for they are in temporary folders."""
    for shipped in (IMAGE, AUDIO):
        if os.path.isfile(path) and filecmp.cmp(path, shipped, shallow=False):
            return str(shipped.relative_to(HERE))
    return Path(path).name


@contextmanager
def answers(*paths: str | None) -> Iterator[None]:
    """Says on the page what the command would say of these files, in its own words: warnings, and
    what it would end with."""
    def plain(line: str) -> str:
        for path in filter(None, paths):
            line = line.replace(path, named(path))
        return line.replace("<", "&lt;")

    cli.hearer.set(lambda line: gr.Warning(plain(line)))
    try:
        yield
    except argparse.ArgumentTypeError as error:
        raise gr.Error(plain(str(error)), print_exception=False) from None
    except Exception as error:
        if (told := cli.explained(error)) is None:
            raise
        raise gr.Error(plain(told[1]), print_exception=False) from None


# ---- what the film is made of -------------------------------------------------------------------

@dataclass
class Order:
    """A film as it is asked for; picture and sound are files."""

    image: str
    crop: str               # "X,Y,SIDE", or "" for the largest square in the middle
    audio: str
    emotion: str            # a timeline
    weights: str
    steps: int
    id_guidance: float
    audio_guidance: float
    autoguidance: float
    seed: int

    @property
    def settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in OPTIONS}

    def shown(self) -> dict[str, object]:
        return asdict(self) | {"image": named(self.image), "audio": named(self.audio)}

    def command(self) -> str:
        """The command line that makes this film."""
        words = {f"--{name.replace('_', '-')}": value for name, value in self.shown().items()
                 if value != ""}
        return " \\\n    ".join(["python sample.py", *(
            f"{option} {shlex.quote(str(value))}" for option, value in words.items())])

    def python(self, device: str) -> str:
        """The lines of Python that make this film."""
        made = self.shown()
        crop = f", crop=({self.crop})" if self.crop else ""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return (f"from tools import media, released\n\n"
                f"model = released.load({self.weights!r}, {device!r})\n"
                f"face = media.read_image({made['image']!r}, model.size{crop})\n"
                f"wave = media.read_audio({made['audio']!r})\n"
                f"frames = model.animate(face, wave, {self.emotion!r},\n"
                f"                       {settings})\n"
                f"media.write_video('film.mp4', frames, wave, media.film_side(model.size),\n"
                f"                  sound={made['audio']!r})\n")


def checked_sound(path: str | None) -> np.ndarray:
    """The sound (L,) of a file, where the page may make a film of it."""
    if not path:
        raise InputError("--audio: no sound yet; choose, record or upload one")
    wave = media.read_audio(path)
    if len(wave) > LONGEST * media.SAMPLE_RATE:
        raise InputError(f"{path}: {len(wave) / media.SAMPLE_RATE:.0f} s of sound; this page makes "
                         f"films of at most {LONGEST} s, and python sample.py of any length")
    return wave


def square(image: str | None, *numbers: float | None) -> str:
    """The crop box "X,Y,SIDE", "" where it is empty; checked, as is the picture."""
    if not image:
        raise InputError("--image: no picture yet; choose or upload one")
    given = [number for number in numbers if number is not None]
    text = ",".join(f"{number:g}" for number in given)
    media.read_image(image, crop=cli.crop(text) if given else None)
    return text


def timeline(rows: list[list]) -> str:
    """The table of the page as the command takes it: "0:neutral 2.5:happy"."""
    return " ".join(f"{seconds}:{''.join(str(emotion).split())}" for seconds, emotion in rows
                    if str(seconds).strip() or str(emotion).strip())


def another_person(folder: Path, side: int) -> str:
    """A face of the drawn world that nobody has seen."""
    number = int(np.random.default_rng().integers(10**6))
    face = torch.from_numpy(faces.random_identity(np.random.default_rng(number)))
    picture = world.to_bytes(faces.draw(face, torch.as_tensor(faces.REST)[None], side))[0]
    path = folder / f"person{number}.png"
    figures.imsave(path, picture)
    return str(path)


def spoken(folder: Path, text: str) -> str:
    """A text as some voice of the drawn world says it; what is in brackets it laughs or sighs."""
    rng, quiet = np.random.default_rng(), np.zeros(media.SAMPLE_RATE // 6, np.float32)
    voice, parts = voices.random_voice(rng, "test"), [quiet]
    for i, part in enumerate(re.split(r"\[(.*?)\]", text)):
        if i % 2 and part not in vocalisations.KINDS:
            raise InputError(f"[{part}]: unknown; known: {', '.join(vocalisations.KINDS)}")
        if i % 2:
            parts += [vocalisations.vocalise(part, rng, voice.pitch_hz)[0], quiet]
        elif part.strip():
            parts += [voices.speak(part, voice).wave, quiet]
    if len(parts) == 1:
        raise InputError("nothing to say yet; type some words")
    path = folder / f"voice{rng.integers(10**6)}.wav"
    media.write_wav(path, np.concatenate(parts))
    return str(path)


# ---- making it ----------------------------------------------------------------------------------

@lru_cache(1)
def loaded(weights: str, device: str) -> KeyFace:
    return released.load(weights, device)


@dataclass
class Making:
    """What is known of a film while it is made, and whether it is still wanted."""

    stage: tuple[str, int, int] = ("weights", 0, 1)
    frame: np.ndarray | None = None
    warning: str | None = None
    stop: bool = False

    def report(self, *stage) -> None:
        if self.stop:
            raise Stopped
        self.stage = stage


def make(order: Order, wave: np.ndarray, folder: Path, device: str, making: Making
         ) -> tuple[str, str]:
    """Makes the film, and its contact sheet: their files."""
    making.report("weights", 0, 1)
    model = loaded(order.weights, device)
    face = media.read_image(order.image, model.size, cli.crop(order.crop) if order.crop else None)
    making.warning = model.unlike(face)
    curve = emotion_curve(order.emotion, media.frame_count(len(wave)))
    plan = Plan(len(curve), model.config.keyframe.spacing)
    keyframes = range(0, len(curve), plan.spacing)
    shown = sorted({*keyframes[::1 + len(keyframes) // 30], *figures.sheet_frames(len(curve))})
    kept: dict[int, np.ndarray] = {}

    def frames() -> Iterator[np.ndarray]:
        for frame in model.animate(face, wave, order.emotion, progress=making.report,
                                   **order.settings):
            if making.stop:
                raise Stopped
            making.frame = frame
            yield frame

    film = folder / f"film{time.time_ns()}.mp4"
    media.write_video(film, figures.keep(frames(), shown, kept), wave,
                      media.film_side(model.size), sound=order.audio)
    sheet = film.with_suffix(".png")
    figures.write_sheet(sheet, face, kept, wave, curve, keyframes)
    return str(film), str(sheet)


def bar(stage: str, done: int, total: int) -> str:
    return f'<label>{stage} <progress max="{total}" value="{done}"></progress></label>'


def page(folder: Path, weights: str, device: str) -> gr.Blocks:
    """The page. Its files are in `folder`."""
    config = load_config(Config, weights)

    def film(image, x, y, side, audio, rows, weights, *settings) -> Iterator[dict]:
        with answers(image, audio):
            wave = checked_sound(audio)
            numbers = [SETTINGS[name](str(value)) for name, value in zip(OPTIONS, settings)]
            order = Order(image, square(image, x, y, side), audio, timeline(rows), weights,
                          *numbers)
            emotion_curve(order.emotion, 1)
            making = Making()
            job = WORKER.submit(make, order, wave, folder, device, making)
            try:
                while not job.done():
                    yield {status: bar(*making.stage), newest: making.frame}
                    time.sleep(0.3)
            finally:
                making.stop = True      # closed: cancelled, or the browser is gone
            video, picture = job.result()
            yield {status: "done", newest: making.frame, result: video, sheet: picture,
                   command: order.command(), lines: order.python(device)}

    with gr.Blocks(title="KeyFace", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown("# KeyFace\nA face, a sound, an emotion: a film. All of it stays on this machine.")
        with gr.Row():
            with gr.Column():
                image = gr.Image(str(IMAGE), type="filepath", image_mode=None, label="face",
                                 sources=["upload"], height=260)
                image.preprocess = lambda file: file and file.path  # bad files get our own answer
                with gr.Row():
                    x, y, side = (gr.Number(None, precision=0, label=label, min_width=60)
                                  for label in ("X", "Y", "SIDE"))
                audio = gr.Audio(str(AUDIO), type="filepath", label="sound")
                rows = gr.Dataframe([p.split(":") for p in EMOTION.split()], type="array",
                                    headers=["seconds", "emotion"], column_count=2)
                weights = gr.Radio([weights, "released"], value=weights, label="weights")
                settings = [gr.Number(getattr(config, name, 0), label=name) for name in OPTIONS]
                go, cancel = gr.Button("Make the film", variant="primary"), gr.Button("Cancel")
            with gr.Column():
                status = gr.HTML("")
                newest = gr.Image(label="newest frame", interactive=False)
                result = gr.Video(label="film", interactive=False)
                sheet = gr.Image(label="contact sheet", interactive=False)
                command = gr.Code(language="shell", label="the same film by command")
                lines = gr.Code(language="python", label="the same film in Python")
        made = go.click(film, [image, x, y, side, audio, rows, weights, *settings],
                        [status, newest, result, sheet, command, lines], concurrency_limit=1,
                        show_progress_on=status)
        cancel.click(lambda: "cancelled", None, status, cancels=made)
    return demo


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("app.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default="weights/tiny", help="folder of weights to offer")
    args = parser.parse_args(argv)
    with cli.scratch() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        demo = page(folder, args.weights, cli.pick_device(None))
        demo.queue(max_size=WAITING)
        demo.launch(server_name="127.0.0.1", share=False, max_file_size=f"{LARGEST}mb",
                    ssr_mode=False, footer_links=[])


if __name__ == "__main__":
    sys.exit(cli.run(main))
