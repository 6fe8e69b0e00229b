"""A page to play with: `python app.py` prints its address, which is good on this machine only.

Choose a face, a sound, emotions along time and the settings of the sampler, watch
`keyface.KeyFace.animate` make the film, and copy the lines that make the same one without the page.
One film is made at a time. The released weights, if chosen, are downloaded; nothing is sent.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from emotion import EMOTIONS, emotion_curve
from keyface import Config, Film, KeyFace
from tools import cli, figures, media, released
from tools.checkpoint import load_config
from tools.cli import AUDIO, EMOTION, IMAGE, WEIGHTS, InputError
from tools.order import SAMPLER, Order, box, curve_table, differences, named, option, seen, timeline
from toy import example

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"    # which gradio reads while it is imported
try:
    import gradio as gr
except ImportError:
    sys.exit('app.py: error: the page is made with gradio: pip install -e ".[app]"')

LONGEST, LARGEST = 60, 30       # of a sound in seconds, of an upload in MB
WAITING = 40                    # clicks in the queue, of all visitors
WORKER = ThreadPoolExecutor(1)  # makes the films, one at a time


# ---- what comes in ------------------------------------------------------------------------------

@contextmanager
def answers(folder: Path) -> Iterator[None]:
    """Says on the page, in the command's own words, what is odd and what cannot be used. Files in
    the page's folder go by their names alone."""
    def plain(line: str) -> str:
        return re.sub(rf"{re.escape(str(folder))}/([0-9a-f]+/)?", "", line).replace("<", "&lt;")

    cli.hearer.set(lambda line: gr.Warning(plain(line)))
    try:
        yield
    except Exception as error:
        if (told := cli.explained(error)) is None:
            raise
        raise gr.Error(plain(told[1]), print_exception=False) from None


def heard(path: str | None) -> np.ndarray:
    """The sound (L,) of a file, where the page may make a film of it."""
    if not path:
        raise InputError("--audio: no sound yet; choose, record or upload one")
    wave = media.read_audio(path)
    if len(wave) > LONGEST * media.SAMPLE_RATE:
        raise InputError(f"{path}: {len(wave) / media.SAMPLE_RATE:.0f} s of sound; the page makes "
                         f"films of at most {LONGEST} s, and python sample.py of any length")
    return wave


# ---- making it ----------------------------------------------------------------------------------

class Stopped(Exception):
    """The film is no longer wanted."""


@dataclass
class Making:
    """A film while it is made: how far it is, its newest frames, and whether it is still wanted."""

    stage: tuple[str, int, int] = ("waiting for the film before", 0, 1)    # name, done, in all
    newest: deque = field(default_factory=lambda: deque(maxlen=14))         # (H, W, 3) uint8
    warning: str | None = None
    stop: bool = False

    def report(self, *stage) -> None:
        """Called after each step of a network. Only here a film is stopped."""
        if self.stop:
            raise Stopped
        self.stage = stage

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Hands the frames on, and shows them."""
        for frame in frames:
            self.report(*self.stage)
            self.newest.append(frame)
            yield frame

    def shown(self) -> tuple[str, np.ndarray | None]:
        """A bar of progress, and the newest frames, seven in a row, as one picture."""
        stage, done, total = self.stage
        bar = f'<label>{stage} <progress max="{total}" value="{done}"></progress></label>'
        return bar, figures.tiles(list(self.newest)) if self.newest else None


loaded = lru_cache(1)(released.load)    # the weights in use stay in memory


def make(order: Order, wave: np.ndarray, folder: Path, device: str, making: Making
         ) -> tuple[str, str]:
    """Makes the film and its contact sheet: their files. Raises Stopped and what `animate` does."""
    making.report("reading the weights, which Cancel does not end", 0, 1)
    model = loaded(order.weights, device)
    making.report("keyframes", 0, 1)
    making.warning = model.unlike(face := seen(order.image, order.crop, model.size))

    def keyframes(film: Film, window: int) -> Tensor:
        """As the model's own, and shows them, long before there are frames between them."""
        model = loaded(order.weights, device)   # (held by this function, it would hold itself)
        latents = KeyFace.sample_keyframes(model, film, window)
        model.bring("vae")
        for part in latents.split(model.batch):
            pictures = ((model.vae.to_images(part) + 1) * 127.5).round().byte()
            making.newest.extend(pictures.permute(0, 2, 3, 1).cpu().numpy())
        return latents

    model.sample_keyframes = keyframes
    curve = emotion_curve(order.emotion, media.frame_count(len(wave)))          # (N, 2)
    grid = range(0, len(curve), model.config.keyframe.spacing)
    kept: dict[int, np.ndarray] = {}
    film = folder / f"film{time.time_ns()}.mp4"
    frames = model.animate(face, wave, order.emotion, progress=making.report, **order.settings)
    media.write_video(film, figures.keep(making.watch(frames), figures.around(grid), kept), wave,
                      media.film_side(model.size), sound=order.audio)
    figures.write_sheet(film.with_suffix(".sheet.png"), face, kept, wave, curve, grid)
    return str(film), str(film.with_suffix(".sheet.png"))


# ---- the page -----------------------------------------------------------------------------------

def forget(films: list[tuple[Order, str, str]]) -> None:
    """Removes the files of films that nobody sees any more."""
    for path in (path for _, *both in films for path in both):
        Path(path).unlink(missing_ok=True)


def page(folder: Path, own: str, device: str) -> gr.Blocks:
    """The page, with the weights folder `own` to choose. Its files are in `folder`."""
    answered = answers(folder)          # also a decorator

    def settings_of(weights: str) -> list[float]:
        config = Config() if weights == "released" else load_config(Config, weights)
        return [getattr(config, name) for name in SAMPLER[:4]]

    @answered
    def centre(path, crop, at: gr.SelectData) -> str:
        return box(path, option("crop", crop)[2] if crop else 10**9, at.index)

    @answered
    def say(text: str) -> str:
        path = folder / f"voice{time.time_ns()}.wav"
        media.write_wav(path, example.say(text, np.random.default_rng()))
        return str(path)

    def film(films, path, crop, audio, rows, weights, *settings) -> Iterator[dict]:
        with answers(folder):
            wave = heard(audio)
            seen(path, crop, size)
            order = Order(path, crop, audio, timeline(rows), weights, *(
                option(name, value) for name, value in zip(SAMPLER, settings)))
            emotion_curve(order.emotion, 1)
            making = Making()
            job = WORKER.submit(copy_context().run, make, order, wave, folder, device, making)
            try:
                while not job.done():
                    yield dict(zip((status, newest), making.shown()))
                    time.sleep(0.3)
            except GeneratorExit:       # cancelled, or the browser is gone
                making.stop = True
                job.add_done_callback(lambda j: j.exception() or forget([(order, *j.result())]))
                raise
            if job.exception():
                yield {status: "not made"}
            films = [*films, (order, *job.result())]
            if making.warning:
                gr.Warning(f"{named(path)}: {making.warning}")
            forget(films[:-2])
            before, now = films[-2:][0], films[-1]
            yield {status: "done", newest: making.shown()[1], made: gr.Column(visible=True),
                   result: now[1], sheet: now[2], command: order.command(), memory: films[-2:],
                   lines: order.python(device), compare: gr.Column(visible=len(films) > 1),
                   first: before[1], second: now[1], table: differences(before[0], order)}

    size = load_config(Config, own).size
    with gr.Blocks(title="KeyFace", analytics_enabled=False, delete_cache=(600, 6 * 3600)) as demo:
        memory = gr.State([], delete_callback=forget)       # the last two films
        gr.Markdown("# KeyFace\nA face, a sound and emotions become a film, all on this machine. "
                    f"Uploads: up to {LARGEST} MB, sound up to {LONGEST} s.")
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    image = gr.Image(str(IMAGE), type="filepath", image_mode=None, label="Face",
                                     sources=["upload"], height=240, scale=2, format="png")
                    preview = gr.Image(label="What the model sees", interactive=False, height=240,
                                       buttons=[], min_width=120)
                crop = gr.Textbox(box(IMAGE), label="Box around the face, in pixels: X,Y,SIDE "
                                  "(a click on the face moves it there)")
                with gr.Row():
                    shipped, person = gr.Button("Shipped face"), gr.Button("Another person")
                audio = gr.Audio(str(AUDIO), type="filepath", label="Sound")
                with gr.Row():
                    speech, *sounds = (gr.Button(name, size="sm", min_width=120)
                                       for name in ("shipped speech", *example.KINDS))
                with gr.Row(visible=find_spec("espeakng_loader") is not None):     # extra toy
                    text = gr.Textbox("What a lovely day! [laugh] But now it is over. [sigh]",
                                      label="Or a text to speak", max_length=500, scale=4)
                    speak = gr.Button("Speak", scale=1, min_width=80)
                rows = gr.Dataframe(
                    [point.split(":") for point in EMOTION.split()], type="array", buttons=[],
                    headers=["seconds", "emotion"], column_count=2,
                    label=f"Emotions: {', '.join(EMOTIONS)}, or valence,arousal as in -0.8,-0.3 "
                          "(a cell's menu adds rows)")
                plot = gr.LinePlot(x="seconds", y="value", color="of", y_lim=[-1, 1], height=170,
                                   color_title=" ", y_title=" ", buttons=[])
                with gr.Accordion("Sampler"):
                    weights = gr.Radio([own, "released"], value=own, label="weights (released: "
                                       "downloaded once, 21 GB)")
                    ranges = ((1, 50, 1), *3 * [(0, 6, 0.1)])
                    knobs = [gr.Slider(low, high, value, step=step, label=name)
                             for name, value, (low, high, step)
                             in zip(SAMPLER, settings_of(own), ranges)]
                    seed = gr.Number(0, precision=0, label="seed")
            with gr.Column():
                with gr.Row():
                    go, cancel = gr.Button("Make the film", variant="primary"), gr.Button("Cancel")
                status = gr.HTML("Nothing is made yet.")
                newest = gr.Image(label="Newest frames", interactive=False, buttons=[])
                with gr.Column(visible=False) as made:
                    result = gr.Video(label="Film", interactive=False, autoplay=True, height=400)
                    gr.Markdown("Contact sheet; K marks keyframes. The page keeps two films")
                    sheet = gr.Image(show_label=False, interactive=False)
                    command, lines = (
                        gr.Code(language=name, label=f"The film {how} (save face and sound)",
                                wrap_lines=True, show_line_numbers=False, interactive=False)
                        for name, how in (("shell", "by command"), ("python", "in Python")))
                with gr.Column(visible=False) as compare:
                    table = gr.Markdown()
                    with gr.Row():
                        first, second = (gr.Video(label=label, interactive=False, min_width=140)
                                         for label in ("The film before", "This film"))
        image.preprocess = lambda file: file and file.path  # of bad files the command's words tell

        look = answered(lambda path, crop: path and seen(path, crop, size)), [image, crop], preview
        # The box may be that of the picture before.
        image.change(answered(lambda path: path and box(path)), image, crop).success(*look)
        image.select(centre, [image, crop], crop).success(*look)
        gr.on([demo.load, crop.submit, crop.blur], *look, trigger_mode="always_last")
        shipped.click(lambda: str(IMAGE), None, image)
        person.click(lambda: example.person(np.random.default_rng()), None, image)
        speech.click(lambda: str(AUDIO), None, audio)
        for button in sounds:
            button.click(lambda kind: say(f"[{kind}]"), button, audio)
        gr.on([speak.click, text.submit], say, text, audio)
        gr.on([demo.load, rows.change, audio.change], answered(
            lambda r, a: a and curve_table(emotion_curve(timeline(r), media.frame_count(
                len(heard(a)))))), [rows, audio], plot, trigger_mode="always_last")
        weights.change(answered(settings_of), weights, knobs)
        making = go.click(film, [memory, image, crop, audio, rows, weights, *knobs, seed],
                          [status, newest, made, result, sheet, command, lines, memory, compare,
                           first, second, table], show_progress_on=status)
        # One after the other: as one event, a last bar of progress may come after the word.
        cancel.click(None, cancels=making).then(lambda: "cancelled", None, status)
    return demo


def opened(folder: Path, weights: str) -> tuple[gr.Blocks, str]:
    """The page and its address, once it is there. Nothing but this machine reaches it."""
    demo = page(folder, weights, cli.pick_device(None)).queue(max_size=WAITING)
    _, address, _ = demo.launch(
        server_name="127.0.0.1", share=False, max_file_size=f"{LARGEST}mb", ssr_mode=False,
        footer_links=[], quiet=True, prevent_thread_lock=True, allowed_paths=[str(IMAGE.parent)])
    return demo, address


def main(argv: list[str] | None = None) -> None:
    """Opens the page, and keeps it until Ctrl-C."""
    parser = cli.Parser("app.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", default=os.path.relpath(WEIGHTS), help="folder of weights")
    args = parser.parse_args(argv)
    with cli.scratch() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        demo, address = opened(folder, args.weights)
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        demo.block_thread()


if __name__ == "__main__":
    sys.exit(cli.run(main))
