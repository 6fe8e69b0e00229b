"""The page in a real browser: Chromium of the system, driven by playwright, against the shipped
weights at one step. What is shown to copy makes the same film, byte for byte."""

import re
import shutil
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import sample
from tools import cli, media
from tools.order import Order, box, differences, option, timeline

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
ORDER = Order("me & you.png", "1,2,30", "it's.wav", "0:neutral 2.5:-0.8,-0.3", "weights/tiny", 4,
              1.5, -2.0, 0.0, 7)

TORN_PICTURE = ("torn.png: empty, cut off, damaged or not a picture; give a PNG or JPEG that can "
                "be opened")
TORN_SOUND = ("torn.wav: empty, damaged or not a sound or video file; give a file with sound, such "
              "as WAV or MP4")


def words(command: str) -> list[str]:
    """The arguments that a shell gives to sample.py."""
    assert command.startswith("python sample.py ")
    said = subprocess.run(["sh", "-c", command.replace("python sample.py", r"printf '%s\0'", 1)],
                          check=True, capture_output=True, text=True).stdout
    return said.split("\0")[:-1]


def test_the_command_asks_for_what_was_ordered():
    asked = vars(sample.arguments(words(ORDER.command())))
    paths = {name: Path(asdict(ORDER)[name]) for name in ("image", "audio", "weights")}
    assert asked == asked | asdict(ORDER) | paths | {"crop": (1, 2, 30)}


def test_a_copy_of_the_shipped_face_goes_by_its_place(tmp_path):
    copy = shutil.copy(cli.IMAGE, tmp_path / "x.png")
    order = replace(ORDER, image=str(copy))
    assert order.shown()["image"] == "assets/face.png"
    rows = differences(ORDER, order).splitlines()[2:]
    assert rows == ["| image | me & you.png | assets/face.png |"]


def test_two_files_of_one_name_differ():
    orders = [replace(ORDER, image=f"{folder}/image.png") for folder in ("0a", "0b")]
    rows = differences(*orders).splitlines()[2:]
    assert rows == ["| image | image.png | another image.png |"]
    assert differences(ORDER, ORDER).splitlines()[2:] == ["| nothing | | |"]


def test_a_field_that_cannot_be_used_is_named():
    assert option("id_guidance", 1.5) == 1.5 and option("crop", "1,2,30") == (1, 2, 30)
    with pytest.raises(cli.InputError, match='--seed: "None" is no whole number'):
        option("seed", None)


def test_a_table_becomes_a_timeline_and_a_click_a_box():
    rows = [[0, "sad"], ["", ""], ["1", None], ["2.5", "0.1, -0.2"]]
    assert timeline(rows) == "0:sad 2.5:0.1,-0.2"
    assert box(cli.IMAGE, 100, (10, 250)) == "0,156,100"
    assert box(cli.IMAGE, 256, (100, 100)) == "36,36,128"


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
    import app
    return app


def test_what_cannot_be_used_is_told(app, tmp_path):
    media.write_wav(tmp_path / "long.wav", np.zeros(16000 * (app.LONGEST + 1), np.float32))
    with pytest.raises(cli.InputError, match="long.wav: 61 s of sound; .* at most 60 s"):
        app.heard(tmp_path / "long.wav")


def test_a_film_that_is_stopped_leaves_nothing(app, tmp_path):
    class StoppedSoon(app.Making):
        def report(self, *stage):
            super().report(*stage)
            self.stop = stage[0] == "keyframes"  # after the first step

    order = Order(str(cli.IMAGE), "", str(cli.AUDIO), "happy", str(cli.WEIGHTS), 1, 1, 1, 1, 0)
    with pytest.raises(app.Stopped):
        app.make(order, np.zeros(8000, np.float32), tmp_path, "cpu", StoppedSoon())
    assert not list(tmp_path.iterdir())


def endless(order, wave, folder, device, making):
    """A film that never ends unless it is stopped."""
    while True:
        making.report("keyframes", 1, 2)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def address(app):
    """The page, served by this process."""
    import torch

    torch.set_num_threads(1)
    with cli.scratch() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        demo, address = app.opened(folder, str(cli.WEIGHTS))
        yield address
        demo.close()


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="the browser's driver is missing")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        # Root has no sandbox of its own; only the page of this test is opened.
        browser = playwright.chromium.launch(executable_path=CHROMIUM,
                                             args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def asked():
    """The hosts that the browser asked for anything."""
    return set()


@pytest.fixture(scope="module")
def page(browser, address, asked):
    page = browser.new_page(reduced_motion="reduce")        # what moves costs a third of the time
    page.set_default_timeout(200_000)      # of a machine that is busy; a wait ends early
    page.on("request", lambda request: asked.add(re.match(r"\w+:(//[^:/]*)?", request.url)[0]))
    page.goto(address)
    page.get_by_label("number input for steps").fill("1")
    page.locator("canvas, svg.marks").first.wait_for()      # the curve
    return page


def upload(page, kind, path):
    """Puts a file in the place of what is there. The field takes none before it says so; a click
    that meets it while it is drawn anew is lost, so it is clicked until then."""
    empty = page.get_by_text(f"Drop {kind.title()} Here")
    remove = page.get_by_label({"image": "Remove Image", "audio": "Clear"}[kind]).last
    for _ in range(100):
        if empty.is_visible():
            break
        if remove.is_visible():
            remove.click()
        page.wait_for_timeout(300)
    empty.wait_for()
    page.locator(f"input[type=file][accept*={kind}]").first.set_input_files(path)


def make(page):
    """Makes a film, and waits until it is there in the place of the one before."""
    film = "document.querySelector('video')?.currentSrc"
    before = page.evaluate(film)
    page.get_by_role("button", name="Make the film").click()
    page.wait_for_function(f"before => {film} && {film} != before", arg=before, polling=100)


def test_makes_films_that_play_can_be_made_again_and_are_compared(page, tmp_path, monkeypatch):
    tone = np.sin(np.arange(16000) ** 1.2 / 99).astype(np.float32) / 4
    media.write_wav(tmp_path / "one.wav", tone)
    upload(page, "audio", tmp_path / "one.wav")
    page.get_by_text("0:01").wait_for()
    make(page)
    video = page.locator("video").first
    video.wait_for()
    page.wait_for_function("v => v.readyState > 2", arg=video.element_handle(), polling=100)
    assert video.evaluate("v => [v.duration, v.videoWidth, v.videoHeight]") == [1, 256, 256]
    video.evaluate("v => v.play()")
    page.wait_for_function("v => v.currentTime > 0.2", arg=video.element_handle(), polling=100)

    film = page.request.get(video.evaluate("v => v.currentSrc")).body()
    monkeypatch.chdir(tmp_path)
    for folder in ("assets", "weights"):
        (tmp_path / folder).symlink_to(cli.HERE / folder)
    exec(page.locator(".cm-content").last.inner_text(), {})  # noqa: S102 (they are to be run)
    assert (tmp_path / "film.mp4").read_bytes() == film

    # Another emotion and seed make another film; the page shows both, and in what they differ.
    cell = page.get_by_test_id("cell-0-1")
    cell.dblclick()
    cell.get_by_role("textbox").fill("sad")
    page.keyboard.press("Enter")
    page.get_by_label("seed").fill("5")
    make(page)
    rows = page.locator(".prose table").inner_text().split()
    rest = ["1.5:neutral", "3:happy", "5:happy", "7:sad"]
    assert rows[rows.index("emotion"):] == [
        "emotion", "0:neutral", *rest, "0:sad", *rest, "seed", "0", "5"]
    first, second = (v.evaluate("v => v.currentSrc") for v in page.locator("video").all()[-2:])
    assert page.request.get(first).body() != page.request.get(second).body()


def test_cancelled_work_ends(page, app, monkeypatch):
    monkeypatch.setattr(app, "make", endless)
    page.get_by_role("button", name="Make the film").click()
    page.locator("label", has_text="keyframes").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).wait_for()
    assert app.WORKER.submit(lambda: "idle").result(timeout=60) == "idle"


@pytest.mark.parametrize("kind, name, line", [
    ("image", "torn.png", TORN_PICTURE),
    ("audio", "torn.wav", TORN_SOUND),
])
def test_a_broken_file_is_answered_as_the_command_does(page, tmp_path, kind, name, line):
    (tmp_path / name).write_bytes(b"nothing of use" * 9)
    upload(page, kind, tmp_path / name)
    page.get_by_test_id("toast-body").get_by_text(line, exact=True).wait_for()


def test_works_without_a_microphone(page):
    page.get_by_label("Record audio").click()
    page.get_by_text("No microphone found").wait_for(state="attached")
    page.get_by_role("button", name="shipped speech").click()
    page.get_by_text("0:08").wait_for()


def test_nothing_comes_from_elsewhere(page, asked):
    assert "http://127.0.0.1" in asked <= {"http://127.0.0.1", "blob:", "data:"}


def test_work_ends_with_the_browser(page, app, monkeypatch):
    monkeypatch.setattr(app, "make", endless)
    for name in ("shipped face", "shipped speech"):         # in the place of the torn ones
        page.get_by_role("button", name=name).click()
    page.locator("img[src*='face.png']").first.wait_for()
    page.get_by_text("0:08").wait_for()
    page.get_by_role("button", name="Make the film").click()
    page.locator("label", has_text="keyframes").wait_for()
    page.close()
    assert app.WORKER.submit(lambda: "idle").result(timeout=60) == "idle"
