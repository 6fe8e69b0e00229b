"""A page to play with: `python app.py` prints its address, which is good on this machine only.

Choose a face, a sound, emotions along time and the settings of the sampler, watch
`keyface.KeyFace.animate` make the film, and copy the lines that make the same one without the page.
One film is made at a time. Nothing is fetched from the network, and nothing is sent there.
"""

import filecmp
import math
import os
import re
import shlex
import sys
import time
from argparse import ArgumentTypeError
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from emotion import EMOTIONS, emotion_curve
from keyface import Config, KeyFace
from tools import cli, figures, media, released
from tools.checkpoint import load_config
from tools.cli import AUDIO, EMOTION, HERE, IMAGE, SETTINGS, WEIGHTS, InputError
from toy import faces, vocalisations, voices, world

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"    # which gradio reads while it is imported
try:
    import gradio as gr
    import pandas as pd
except ImportError:
    sys.exit('app.py: error: the page is made with gradio: pip install -e ".[app]"')

LONGEST, LARGEST = 60, 30       # of a sound in seconds, of an upload in MB
WAITING = 8                     # films in the queue
SHIPPED = "sentences with a laugh"
OPTIONS = ("steps", "id_guidance", "audio_guidance", "autoguidance", "seed")
WORKER = ThreadPoolExecutor(1)  # makes the films, one at a time


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
    except ArgumentTypeError as error:
        raise gr.Error(plain(str(error)), print_exception=False) from None
    except Exception as error:
        if (told := cli.explained(error)) is None:
            raise
        raise gr.Error(plain(told[1]), print_exception=False) from None


# ---- what a film is made of ----------------------------------------------------------------------

@dataclass
class Order:
    """A film as it is asked for. Picture and sound are files."""

    image: str
    crop: str               # "X,Y,SIDE"; "" for the largest square in the middle
    audio: str
    emotion: str            # "0:neutral 2.5:happy"
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
        """Each option with its value, files by the names that the page shows."""
        return asdict(self) | {"image": named(self.image), "audio": named(self.audio)}

    def command(self) -> str:
        """The command line that makes this film."""
        words = {name.replace("_", "-"): str(value) for name, value in self.shown().items()}
        return " \\\n    ".join(["python sample.py", *(
            f"--{name}={shlex.quote(value)}" for name, value in words.items() if value)])

    def python(self, device: str) -> str:
        """The lines of Python that make this film."""
        made = self.shown()
        crop = f", crop=({self.crop})" if self.crop else ""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"""from tools import media, released

model = released.load({self.weights!r}, {device!r})
face = media.read_image({made["image"]!r}, model.size{crop})
wave = media.read_audio({made["audio"]!r})
frames = model.animate(face, wave, {self.emotion!r},
                       {settings})
media.write_video("film.mp4", frames, wave, media.film_side(model.size),
                  sound={made["audio"]!r})"""


def heard(path: str | None) -> np.ndarray:
    """The sound (L,) of a file, where the page may make a film of it."""
    if not path:
        raise InputError("--audio: no sound yet; choose, record or upload one")
    wave = media.read_audio(path)
    if len(wave) > LONGEST * media.SAMPLE_RATE:
        raise InputError(f"{path}: {len(wave) / media.SAMPLE_RATE:.0f} s of sound; the page makes "
                         f"films of at most {LONGEST} s, and python sample.py of any length")
    return wave


def seen(path: str | None, crop: str, size: int | None = None) -> np.ndarray:
    """The square of a picture that "X,Y,SIDE" chooses, (H, W, 3) uint8."""
    if not path:
        raise InputError("--image: no picture yet; choose or upload one")
    return media.read_image(path, size, cli.crop(crop) if crop else None)


def timeline(rows: list[list]) -> str:
    """The table of the page as the command takes it: "0:neutral 2.5:happy"."""
    return " ".join(f"{seconds}:{re.sub(r'[ ]', '', str(emotion))}" for seconds, emotion in rows
                    if f"{seconds}{emotion}".strip())


def curve_plot(rows: list[list], audio: str | None) -> pd.DataFrame:
    """Valence and arousal along the film, for the plot."""
    count = media.frame_count(len(heard(audio)))
    curve = emotion_curve(timeline(rows), count)[::5]                          # (N / 5, 2)
    return pd.DataFrame({"seconds": np.tile(np.arange(len(curve)) * 5 / media.FPS, 2),
                         "value": curve.T.flatten(),
                         "of": np.repeat(["valence", "arousal"], len(curve))})


def another_person(folder: Path) -> str:
    """The file of a face of the drawn world that nobody has seen."""
    number = np.random.default_rng().integers(10**6)
    face = torch.from_numpy(faces.random_identity(np.random.default_rng(number)))
    picture = world.to_bytes(faces.draw(face, torch.as_tensor(faces.REST)[None], 256))[0]
    figures.imsave(folder / f"person{number}.png", picture)
    return str(folder / f"person{number}.png")


def spoken(folder: Path, text: str) -> str:
    """The file of a text in some voice of the drawn world; what is in brackets it laughs or sighs."""
    rng, quiet = np.random.default_rng(), np.zeros(media.SAMPLE_RATE // 5, np.float32)
    voice, parts = voices.random_voice(rng, "test"), [quiet]
    for i, part in enumerate(re.split(r"\[(.*?)\]", text)):
        if i % 2 and part not in vocalisations.KINDS:
            raise InputError(f"[{part}] is no sound; known: {', '.join(vocalisations.KINDS)}")
        if i % 2:
            parts += [vocalisations.vocalise(part, rng, voice.pitch_hz)[0], quiet]
        elif part.strip():
            parts += [voices.speak(part, voice).wave, quiet]
    if len(parts) == 1:
        raise InputError("there is nothing to say yet; type some words")
    path = folder / f"voice{rng.integers(10**6)}.wav"
    media.write_wav(path, np.concatenate(parts))
    return str(path)


# ---- making it ----------------------------------------------------------------------------------

class Stopped(Exception):
    """The film is no longer wanted."""


@lru_cache(1)
def loaded(weights: str, device: str) -> KeyFace:
    return released.load(weights, device)


@dataclass
class Making:
    """A film while it is made: how far it is, its newest frames, and whether it is still wanted."""

    stage: tuple[str, int, int] = ("waiting", 0, 1)     # name, steps done, steps in all
    newest: deque = field(default_factory=lambda: deque(maxlen=14))     # (H, W, 3) uint8
    warning: str | None = None
    stop: bool = False

    def report(self, *stage) -> None:
        """Called after each step of a network: the place where a film can be stopped."""
        if self.stop:
            raise Stopped
        self.stage = stage

    def watched(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            self.report(*self.stage)
            self.newest.append(frame)
            yield frame

    def pictures(self) -> np.ndarray | None:
        """The newest frames in two rows of seven, as one picture."""
        if not (frames := list(self.newest)):
            return None
        step = max(1, len(frames[0]) // 128)            # small ones are enough
        tiles = np.full((14, *frames[0][::step, ::step].shape), 255, np.uint8)
        tiles[:len(frames)] = [frame[::step, ::step] for frame in frames]
        return np.concatenate([np.concatenate(list(row), 1) for row in (tiles[:7], tiles[7:])])


def make(order: Order, wave: np.ndarray, folder: Path, device: str, making: Making
         ) -> tuple[str, str]:
    """Makes the film and its contact sheet: their files. Raises Stopped, and what `animate` does."""
    making.report("weights", 0, 1)
    model = loaded(order.weights, device)
    face = seen(order.image, order.crop, model.size)
    making.warning = model.unlike(face)
    curve = emotion_curve(order.emotion, media.frame_count(len(wave)))          # (N, 2)
    keyframes = range(0, len(curve), model.config.keyframe.spacing)
    # On the sheet: keyframes, and a frame between each two; of long films every so many of them.
    several = math.ceil(len(keyframes) / 30) * keyframes.step
    wanted = [i + j for i in range(0, len(curve), several) for j in (0, several // 2)]
    kept: dict[int, np.ndarray] = {}

    film = folder / f"film{time.time_ns()}.mp4"
    frames = model.animate(face, wave, order.emotion, progress=making.report, **order.settings)
    media.write_video(film, figures.keep(making.watched(frames), wanted, kept), wave,
                      media.film_side(model.size), sound=order.audio)
    figures.write_sheet(film.with_suffix(".png"), face, kept, wave, curve, keyframes)
    return str(film), str(film.with_suffix(".png"))


# ---- the page -----------------------------------------------------------------------------------

def bar(stage: str, done: int, total: int) -> str:
    return f'<label>{stage} <progress max="{total}" value="{done}"></progress></label>'


def differences(a: Order, b: Order) -> str:
    """What differs between two films, as a table."""
    a, b = a.shown(), b.shown()
    rows = [f"| {name} | {a[name]} | {b[name]} |" for name in a if a[name] != b[name]]
    return "\n".join(["| | the film before | this film |", "| --- | --- | --- |",
                      *(rows or ["| nothing | | |"])])


def forget(films: list[tuple[Order, str, str]]) -> None:
    """Removes the files of films that nobody sees any more."""
    for _, *paths in films:
        for path in paths:
            Path(path).unlink(missing_ok=True)


def page(folder: Path, own: str, device: str) -> gr.Blocks:
    """The page, with the weights folder `own` to choose. Its files are in `folder`."""
    def config_of(weights: str) -> Config:
        return Config() if weights == "released" else load_config(Config, weights)

    def show_face(path, crop):
        with answers(path):
            return seen(path, crop, config.size)

    def new_face(path):
        with answers(path):
            height, width = media.open_image(path).shape[:2]
            side = min(width, height)
            return f"{(width - side) // 2},{(height - side) // 2},{side}"

    def centre(path, crop, at: gr.SelectData):
        with answers(path):
            height, width = media.open_image(path).shape[:2]
            side = cli.crop(crop)[2]
            left, top = (int(min(max(a - side / 2, 0), whole - side))
                         for a, whole in zip(at.index, (width, height)))
            return f"{left},{top},{side}"

    def draw_curve(rows, audio):
        with answers(audio):
            return curve_plot(rows, audio)

    def example(name):
        with answers():
            return str(AUDIO) if name == SHIPPED else spoken(folder, f"[{name}]")

    def say(text):
        with answers():
            return spoken(folder, text)

    def film(films, path, crop, audio, rows, weights, *settings) -> Iterator[dict]:
        with answers(path, audio):
            wave = heard(audio)
            seen(path, crop)
            numbers = [SETTINGS[name](str(value)) for name, value in zip(OPTIONS, settings)]
            order = Order(path, crop, audio, timeline(rows), weights, *numbers)
            emotion_curve(order.emotion, 1)
            making = Making()
            job = WORKER.submit(make, order, wave, folder, device, making)
            try:
                while not job.done():
                    yield {status: bar(*making.stage), newest: making.pictures()}
                    time.sleep(0.3)
            finally:
                making.stop = True      # this is closed: cancelled, or the browser is gone
            if making.warning:
                gr.Warning(f"{named(path)}: {making.warning}")
            forget(films[:-1])
            films = [*films[-1:], (order, *job.result())]
            before, now = films[0], films[-1]
            yield {status: "done", newest: making.pictures(), made: gr.Column(visible=True),
                   result: now[1], sheet: now[2], command: order.command(),
                   lines: order.python(device), memory: films,
                   compare: gr.Accordion(visible=len(films) > 1), first: before[1],
                   second: now[1], table: differences(before[0], order)}

    config = config_of(own)
    with gr.Blocks(title="KeyFace", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        memory = gr.State([], delete_callback=forget)       # the last two films
        gr.Markdown(f"# KeyFace\nA face, a sound and emotions become a film. All of it stays on this "
                    f"machine. Uploads: up to {LARGEST} MB, sound up to {LONGEST} s.")
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    image = gr.Image(str(IMAGE), type="filepath", image_mode=None, label="Face",
                                     sources=["upload"], height=260, scale=2)
                    preview = gr.Image(label="What the model sees", interactive=False, height=260,
                                       buttons=[])
                with gr.Row():
                    shipped = gr.Button("Shipped face")
                    person = gr.Button("Another person")
                    crop = gr.Textbox(label="Box X,Y,SIDE; a click on the face centres it",
                                      min_width=120)
                audio = gr.Audio(str(AUDIO), type="filepath", label="Sound")
                examples = gr.Dropdown([SHIPPED, *vocalisations.KINDS], label="Shipped sounds")
                speaks = find_spec("espeakng_loader") is not None
                with gr.Row(visible=speaks):
                    text = gr.Textbox("What a lovely day! [laugh] But now it is over. [sigh]",
                                      label="Or a text to be spoken", max_length=500, scale=3)
                    speak = gr.Button("Speak")
                rows = gr.Dataframe([p.split(":") for p in EMOTION.split()], type="array",
                                    headers=["seconds", "emotion"], column_count=2,
                                    label=f"Emotion: {', '.join(EMOTIONS)}, or valence,arousal")
                plot = gr.LinePlot(x="seconds", y="value", color="of", y_lim=[-1, 1], height=180)
                with gr.Accordion("Sampler"):
                    weights = gr.Radio([own, "released"], value=own, label="weights")
                    steps = gr.Slider(1, 50, config.steps, step=1, label="steps")
                    guidance = [gr.Slider(0, 6, getattr(config, name), step=0.1,
                                          label=name.replace("_", " ")) for name in OPTIONS[1:4]]
                    seed = gr.Number(0, precision=0, minimum=0, label="seed")
            with gr.Column():
                with gr.Row():
                    go = gr.Button("Make the film", variant="primary")
                    cancel = gr.Button("Cancel")
                status = gr.HTML("")
                newest = gr.Image(label="Newest frames", interactive=False, buttons=[])
                with gr.Column(visible=False) as made:
                    result = gr.Video(label="Film", interactive=False, autoplay=True)
                    sheet = gr.Image(label="Contact sheet; K: keyframe", interactive=False)
                    command = gr.Code(language="shell", label="The same film by command")
                    lines = gr.Code(language="python", label="The same film in Python")
                with gr.Accordion("Compare with the film before", visible=False) as compare:
                    with gr.Row():
                        first = gr.Video(label="The film before", interactive=False)
                        second = gr.Video(label="This film", interactive=False)
                    table = gr.Markdown()
        image.preprocess = lambda file: file and file.path      # bad files get the command's answer

        image.change(new_face, image, crop)
        gr.on([demo.load, crop.change], show_face, [image, crop], preview)
        image.select(centre, [image, crop], crop)
        shipped.click(lambda: str(IMAGE), None, image)
        person.click(lambda: another_person(folder), None, image)
        examples.input(example, examples, audio)
        gr.on([speak.click, text.submit], say, text, audio)
        gr.on([demo.load, rows.change, audio.change], draw_curve, [rows, audio], plot)
        weights.change(lambda name: [getattr(config_of(name), option) for option in OPTIONS[:4]],
                       weights, [steps, *guidance])
        event = go.click(film, [memory, image, crop, audio, rows, weights, steps, *guidance, seed],
                         [status, newest, made, result, sheet, command, lines, memory, compare,
                          first, second, table], show_progress_on=status)
        cancel.click(lambda: "cancelled", None, status, cancels=event)
    return demo


def main(argv: list[str] | None = None) -> None:
    """Opens the page, and keeps it until Ctrl-C."""
    parser = cli.Parser("app.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default=os.path.relpath(WEIGHTS), help="folder of weights")
    weights = parser.parse_args(argv).weights
    with cli.scratch() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        demo = page(folder, weights, cli.pick_device(None)).queue(max_size=WAITING)
        _, address, _ = demo.launch(
            server_name="127.0.0.1", share=False, max_file_size=f"{LARGEST}mb", ssr_mode=False,
            footer_links=[], quiet=True, prevent_thread_lock=True)
        print(f"the page is at {address}; Ctrl-C ends it", flush=True)
        demo.block_thread()


if __name__ == "__main__":
    sys.exit(cli.run(main))
