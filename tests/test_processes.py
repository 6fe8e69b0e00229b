"""Trainings in processes of their own: killed, told to stop, and several that share each batch."""

import math
import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import ROOT, copy, equal
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import training
from stage import Stage
from tools import processes
from tools.checkpoint import load_metadata, load_state


def process(argv: list[str], log: Path, env: dict[str, str], halt: tuple[str, int]) -> None:
    """A training that saves after every step, in float64 and in a process of its own. Step 3 has an
    infinite loss in the last process. At the n-th time that `halt` is to be renamed, the process
    stands still and leaves a file *halted* beside the log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(ROOT / "train_keyframe.py"), *argv]
    os.environ.update(env, CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    training.HELD_OUT, training.sheet = 2, lambda *_: None
    training.SAVE_EVERY, training.REPORT_EVERY, training.save_metrics = -1, -1, lambda *_: None
    if "MEASURE" not in env:
        training.Run.measure = lambda _: None

    forward, replace, names = Stage.forward, os.replace, []

    def overflowing(self, *args):
        latent, pixel = forward(self, *args)
        last = int(env.get("RANK", 0)) == int(env.get("WORLD_SIZE", 1)) - 1
        return latent + (math.inf if torch.initial_seed() == 3 and last else 0), pixel

    def halting(source, target):
        names.append(Path(source).name)
        if names.count(halt[0]) == halt[1]:
            log.with_name("halted").touch()
            time.sleep(600)
        replace(source, target)

    Stage.forward, os.replace = overflowing, halting
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.fixture(scope="module")
def start(cache):
    """Starts a training in processes of its own, which share its batches as under torchrun. They
    are forked from a process that has imported everything, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_processes", "transformers.models.wavlm.modeling_wavlm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        multiprocessing.forkserver.ensure_running()

    def start(out: Path, *options: str, count: int = 1, halt: tuple[str, int] = ("", 1),
              **more: str) -> list:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        started = []
        for rank in range(count):
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "WORLD_SIZE": str(count), **more}
            argv = [f"--out={out}", f"--data={cache}", "--steps=8", "--batch=2", *options]
            started.append(context.Process(target=process, args=(
                argv, out.with_name(f"{out.name}.log{rank}"), env, halt if rank == 0 else ("", 1))))
            started[-1].start()
        return started

    return start


def finish(started: list, status: int = 0) -> None:
    for each in started:
        each.join(200)
        assert each.exitcode == status


def test_a_killed_process_has_the_status_of_its_signal(monkeypatch):
    def killed(argv):
        raise ChildFailedError("train", {0: ProcessFailure(0, 1, -9, "none")})

    monkeypatch.setattr("torch.distributed.run.main", killed)
    assert processes.main([]) == 128 + 9


def wait_for(path: Path) -> None:
    end = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(frozen, start, tmp_path_factory) -> Path:
    out = copy(frozen, tmp_path_factory.mktemp("undisturbed") / "out")
    finish(start(out))
    return out


def same_end(a: Path, b: Path) -> bool:
    """Whether two trainings ended with the same bits: weights, average, optimizer and the rest."""
    def end(out: Path) -> tuple[dict, dict]:
        state = load_state(out / "keyframe.state")
        moments = {f"{i}.{name}": value for i, each in state["optimizer"]["state"].items()
                   for name, value in each.items()}
        tensors = {**state["stage"], **state["average"], **moments,
                   **load_file(out / "keyframe.safetensors")}
        return tensors, {k: state[k] for k in ("step", "facts", "skipped")}

    (ours, rest), (theirs, others) = end(a), end(b)
    return equal(ours, theirs) and rest == others


def test_killed_in_a_save_a_training_ends_as_if_undisturbed(frozen, undisturbed, start, tmp_path):
    """Killed while it writes the weights, between the weights and the state, and between the state
    that gives way and the new one."""
    out, halted = copy(frozen, tmp_path / "out"), tmp_path / "halted"
    options = []
    for halt in (("keyframe.safetensors", 2), ("keyframe.state", 3), ("keyframe.state", 4)):
        [running] = start(out, *options, halt=halt)
        wait_for(halted)
        running.kill()
        running.join()
        halted.unlink()
        assert [path.name for path in out.glob(".keyface.*/*")] == [halt[0]]  # it was in a save
        options = ["--resume"]
    finish(start(out, *options))
    assert load_state(out / "keyframe.state")["step"] == 8
    assert same_end(out, undisturbed)
    assert not list(out.glob(".*"))


def test_two_processes_compute_what_one_does(frozen, undisturbed, start, tmp_path):
    """Through both phases, a step that one of the two says to skip, and a kill as they save: the
    other then ends with one line, and both go on together."""
    parted = copy(frozen, tmp_path / "parted")
    first, second = start(parted, count=2, halt=("keyframe.state", 6))
    wait_for(tmp_path / "halted")
    first.kill()
    finish([second], 1)
    *_, said = (tmp_path / "parted.log1").read_text().splitlines()
    assert said == ("train_keyframe.py: error: another process of this training has ended; see "
                    "what it said, and go on with --resume")
    finish(start(parted, "--resume", count=2))
    once, twice = (load_state(out / "keyframe.state") for out in (undisturbed, parted))
    assert once["step"] == twice["step"] == 8 and once["skipped"] == twice["skipped"] == 1
    for name, value in once["stage"].items():
        assert value.dtype == torch.float64
        assert torch.allclose(value, twice["stage"][name], atol=1e-12, rtol=0), name


def test_shares_of_everything_compute_what_one_process_does(frozen, start, tmp_path):
    """--shard: parameters, gradients, means and average lie half in each of two processes, in both
    phases. What they save is whole; here one process begins, two go on into the second phase."""
    one, two = copy(frozen, tmp_path / "one"), copy(frozen, tmp_path / "two")
    options = ("--steps=3", "--spatial=.5")  # the whole network in the last step only
    [running] = start(one, *options, halt=("keyframe.state", 2))
    wait_for(tmp_path / "halted")
    shutil.copy(one / "keyframe.state", two)  # of step 1
    running.kill()
    running.join()
    finish(start(one, *options, "--resume", MEASURE="1"))
    finish(start(two, *options, "--shard", "--resume", count=2, MEASURE="1"))
    measured = [re.findall(r"val_\w+ \S+", out.with_name(f"{out.name}.log0").read_text())
                for out in (one, two)]
    assert measured[0] == measured[1] and len(measured[0]) == 2 * 3
    once, twice = (load_state(out / "keyframe.state") for out in (one, two))
    assert once["step"] == twice["step"] == 3
    for name in ("stage", "average"):
        assert once[name].keys() == twice[name].keys()
        assert all(torch.allclose(value, twice[name][key], atol=1e-9, rtol=0)
                   for key, value in once[name].items())
    for i, means in once["optimizer"]["state"].items():
        other = twice["optimizer"]["state"][i]
        assert all(torch.allclose(value, other[key], atol=1e-9) for key, value in means.items())


def test_sigterm_saves_and_leaves(frozen, start, tmp_path):
    out = copy(frozen, tmp_path / "out")
    [running] = start(out, "--steps=1000000")
    wait_for(out / "keyframe.state")
    running.terminate()
    finish([running], 143)
    step = load_state(out / "keyframe.state")["step"]
    lines = (tmp_path / "out.log0").read_text().splitlines()
    assert len(lines) == 3 and lines[2].startswith(f"stopped: step {step}, "), lines
    assert load_metadata(out / "keyframe.safetensors")["step"] == str(step)
    assert not list(out.glob(".*"))


def test_the_launcher_hands_on_a_signal_and_an_error_without_a_traceback(monkeypatch):
    """The signal is made up, as torchrun can lose one that comes while it starts its processes."""
    failing = subprocess.run(
        [sys.executable, "-m", "tools.processes", "--standalone", "--no-python",
         "--nproc_per_node=2", "sh", "-c", "echo --lr: no >&2; exit 2"], cwd=ROOT, text=True,
        capture_output=True, timeout=100, check=False)
    assert failing.returncode == 2 and "--lr: no" in failing.stderr
    assert "Traceback" not in failing.stderr

    def stopped(argv: list[str]) -> None:
        raise SignalException("told to stop", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.run.main", stopped)
    assert processes.main([]) == 143
