"""What every command shares: its parser, exit codes, signals, memory, and files written whole.

A mistake of the user's is an `InputError`: one line on stderr, exit status 2. Trouble with the
machine (disk, memory) is 1, a signal 128 and its number. Nothing half-written keeps its final name.
"""

import argparse
import errno
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
WEIGHTS = HERE / "weights" / "tiny"


class InputError(Exception):
    """Bad input: one line that names the file or option and says what to do."""


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argument type: an int or a float within bounds."""
    def convert(text: str):
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:        # not so for NaN
                return value
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f'"{text}" is no {name} from {low} to {high}')
    return convert


def check_output(path: Path | str, endings: tuple[str, ...], option: str) -> Path:
    """Refuses, before any work, a file that could not be written at the end. Makes its folder."""
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise InputError(f"{option}: {path} must end in {' or '.join(endings)}")
    try:
        if path.is_dir():
            raise InputError(f"{option}: {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"{option}: cannot write {path}: {error.strerror}; name another place"
                         ) from None
    return path


def make_folder(path: Path) -> None:
    """Makes a folder to write files to, where it is not there. Raises InputError if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"{path}: {error.strerror}; name a folder to write") from None


_unfinished: set[Path] = set()      # temporary folders, for an end by signal


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the block ends well, else disappears.

    Raises OSError that names `path`.
    """
    folder = path.parent / f".keyface.{secrets.token_hex(4)}"  # not of the name, which may be long
    _unfinished.add(folder)         # before it is there: a signal may come at any time
    try:
        folder.mkdir(0o700)
        yield folder / path.name
        os.replace(folder / path.name, path)
    except OSError as error:
        if not error.strerror:                      # not the system's: it says already what failed
            raise
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str):
        raise InputError(message.removeprefix("argument "))


@contextmanager
def _signals_end_the_process() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave with 130 and 143 at once, and take unfinished files along.

    A thread does it: an exception in the main thread would wait for the end of a long computation,
    and is sometimes swallowed by a library that is just being imported.
    """
    def watch() -> None:
        while number := reader.recv(1):
            if number[0] in before:
                for folder in tuple(_unfinished):
                    shutil.rmtree(folder, ignore_errors=True)
                os._exit(128 + number[0])

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signals = signal.SIGINT, signal.SIGTERM
    before = {each: signal.signal(each, lambda *_: None) for each in signals}
    woken = signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for each, handler in before.items():
            signal.signal(each, handler)
        writer.close()                              # which ends the thread


def _short_of_memory(said: str) -> str:
    """What torch says when memory is short, in one line that tells what would help."""
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", said, re.IGNORECASE)
    free = re.search(r"capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", said)
    numbers = [f"{wanted[1]} more wanted"] if wanted else []
    numbers += [f"{free[2]} of {free[1]} free"] if free else []
    line = "out of memory" + (f" ({', '.join(numbers)})" if numbers else "")
    if not re.search("CUDA|CUBLAS|CUDNN|HIP|MPS", said):
        return f"{line}; close other programs or use smaller --weights"
    return (f"the GPU is {line}; close other programs that use it, or use --low-memory (the "
            "released weights take 8 GB then, not 18), another GPU, --device cpu or smaller "
            "--weights (--size changes nothing here)")


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Calls a script's `main(argv)`; returns its exit status, with one line on stderr if it failed.

    0 done, 2 bad input, 1 trouble with the machine (disk, memory); a signal ends the process.
    """
    try:
        with _signals_end_the_process():
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(errors="backslashreplace")   # for names of any bytes
            main(argv)
            if sys.stdout:                          # None where it was closed from the start
                sys.stdout.flush()
        return 0
    except InputError as error:
        status, line = 2, str(error)
    except BrokenPipeError:
        status, line = 1, "standard output was closed before the end; let it be read to the end"
    except OSError as error:
        status, line = 1, str(error)
    except MemoryError as error:
        status, line = 1, _short_of_memory(str(error))
    except BrokenExecutor:
        status, line = 1, ("a process that worked for this one was killed, most likely for want of "
                           "memory; try again with more of it free")
    except RuntimeError as error:                   # torch has no MemoryError of its own
        short = "out of memory|can't allocate memory|ALLOC_FAILED|could not \\w+ a primitive"
        if not re.search(short, str(error)):
            raise
        status, line = 1, _short_of_memory(str(error))
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(line.split())}", file=sys.stderr)
    return status
