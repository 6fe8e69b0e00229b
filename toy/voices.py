"""Voices of the toy world: espeak-ng through ctypes, with the time of every phoneme and its mouth.

Stands in for the paper's recorded speech. In: text and a voice. Out: 16 kHz mono
sound (L,) in [-1, 1] and phonemes (start_s, end_s, symbol, stressed); from these a mouth track
(N, 5) at 25 fps.
espeak-ng is GPL-licensed and comes with the extra `toy`; only the drawn world needs it.
"""

import _ctypes
import ctypes
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tools.cli import InputError
from tools.media import FPS, SAMPLE_RATE

Phoneme = tuple[float, float, str, bool]  # start_s, end_s, symbol, stressed


# ------------------------------------------------------------------------------------- what is said

# Rich in lips that close or round and in open vowels; "_" stands for a space.
WORDS = {
    "noun": """
        apple baby balloon banana basket bear bee beach bell berry bird blossom boat bonfire book
        boot bottle bowl box boy bread breakfast bridge brother bubble bucket butter camel camp
        car cave chapel chimney coffee comb copper cow cup dolphin door dove drum farm farmer
        father feather fence fever field fiddle fire fish flag flame flower foam forest fox friend
        frog fruit game garage garden ghost glove goat guitar hammer harbour heart hive honey
        horse house island jam jewel kettle lamb lamp leaf lemon lion map market meadow melon milk
        mirror money moon moth mother mouse movie mouth mushroom music oven owl paper park parrot
        path peach pear pepper piano picture pie pigeon pillow pipe plum poem pool potato pudding
        puppy queen rabbit raft ribbon river robe roof room rope sheep shop shoe soup spoon stove
        summer table tomb tomato tooth tree tube tulip uncle valley van velvet village violin
        voice wafer wagon waffle water wave web whale wheel window wolf wood worm yard zebra""",
    "verb": """
        adore avoid beat bake bathe believe blame bless borrow break bring brush build buy call
        carry chop clap climb comb command cover dig draw drop embrace feed feel fetch film find
        fix float fold follow forget forgive free frame give grab hear help hide hop improve
        invite juggle jump keep know leave lift like love make map measure meet mend miss move
        need notice observe offer open paint pay perform phone pick plant please pour praise
        prefer prove pull push remember remove save sell serve share shape shave show snap stop
        swap taste tempt throw trap trim type use visit wave want wash weave wipe wrap""",
    "adjective": """
        amber awful bald beautiful big black blue bold brave brief bright brown bumpy calm cheap
        chubby clever comfy cool cosy deep double dumb early empty fabulous fair famous fast
        favourite few fierce fine firm five foggy foolish fragile free fresh funny furry fuzzy
        gloomy good green happy heavy huge hollow important lame large loud lovely lumpy
        marvellous mellow mild modern muddy new noble odd old open pale perfect pink plain poor
        proud pure purple quiet rapid red rough round rubber safe shabby short small smooth soft
        simple sour spooky stiff super sweet tame tough useful vague vast vivid warm weak wise
        wooden wild young""",
    "name": """
        Abby Adam Amy Anna Barbara Ben Bob Bobby Bruno Emma Eva Fay Felix Fiona Fred Harvey Hugo
        Ivy Jeff Joe Laura Leo Lou Mabel Marco Maria Max Mia Molly Oliver Omar Oscar Pam Paul
        Peter Phoebe Robin Ruby Rufus Sophie Steve Thomas Toby Tom Viola Vivian Walter Zoe""",
    "place": """
        abroad above_us after_all all_winter at_home at_noon before_dinner below by_bus
        by_ferry by_the_sea every_evening for_a_while for_ever from_above in_April in_February
        in_May in_Paris in_public in_Rome in_the_barn in_the_morning now on_Friday on_foot
        on_Monday on_purpose once_more over_there right_away somehow up_here very_often""",
    "auxiliary": """
        will would can could may might must should did_not will_never used_to""",
    "owner": """
        the a my your our his her their some every this that""",
}
TEMPLATES = (
    "{name} {auxiliary} {verb} {owner} {adjective} {noun} {place}.",
    "{owner} {adjective} {noun} {auxiliary} {verb} {name}.",
    "{place}, {owner} {noun} {auxiliary} {verb} {owner2} {adjective} {noun2}.",
    "Do you {verb} {owner} {noun}?",
    "What a {adjective} {noun}!",
    "{verb} {owner} {noun} and {verb2} {owner2} {noun2}, {name}.",
    "We {auxiliary} {verb} {name} and {name2} {place}.",
    "Oh, how {adjective} and {adjective2}!",
    "{name}, {verb} me {owner} {noun}.",
    "I {auxiliary} {verb} you {place}.",
    "If {owner} {noun} is {adjective}, {name} {auxiliary} {verb} it {place}.",
    "Why {verb} {owner} {adjective}, {adjective2} {noun}?",
    "{owner} {noun} of {name} is more {adjective} than {owner2} {noun2}.",
    "No, {name} {auxiliary} {verb} us {place}.",
)
CONTENT = ("noun", "verb", "adjective", "name")  # of these words, every sixth is kept for the test
KEPT = set(sorted({word for kind in CONTENT for word in WORDS[kind].split()})[::6])


def vocabulary(split: str) -> dict[str, list[str]]:
    """Kind of word -> the words of a split. Content words are in one split only."""
    return {
        kind: [
            word.replace("_", " ")
            for word in text.split()
            if kind not in CONTENT or (word in KEPT) == (split == "test")
        ]
        for kind, text in WORDS.items()
    }


_VOCABULARY = {split: vocabulary(split) for split in ("train", "test")}


def random_sentence(rng: np.random.Generator, split: str) -> str:
    """A sentence of 3 to 13 words; "train" and "test" ones share no content word."""
    chosen = {}
    for kind, words in _VOCABULARY[split].items():
        chosen[kind], chosen[kind + "2"] = rng.choice(words), rng.choice(words)
    sentence = rng.choice(TEMPLATES).format(**chosen)
    sentence = re.sub(r"\ba (?=[aeio])", "an ", sentence, flags=re.IGNORECASE)
    return sentence[0].upper() + sentence[1:]


# -------------------------------------------------------------------------------------- who says it

LANGUAGES = {
    "train": [
        "en-us",
        "en-gb",
        "en-gb-scotland",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
        "en-029",
        "en-us-nyc",
    ],
    "test": ["en-us", "en-gb", "en-gb-x-rp"],
}
VARIANTS = {
    "train": ["m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f4"],
    "test": ["m6", "f5"],
}


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice: name as "en-us+m3", words/min 110..220, pitch 20..85, range 0..100.

    `tract`, 272..376, is the length of the vocal tract: 320 as espeak-ng has it; less is shorter,
    with all its resonances (and the pitch) higher by 320 / tract.
    """

    name: str
    rate: float
    pitch: float
    pitch_range: float
    tract: int = 320

    @property
    def pitch_hz(self) -> float:
        """About the pitch this voice speaks at; vocalisations of the same person start from it."""
        return (180.0 if "+f" in self.name else 95.0) * (0.75 + self.pitch / 130) * 320 / self.tract


def random_voice(rng: np.random.Generator, split: str) -> Voice:
    """A voice of the split "train" or "test"; the two share no variant."""
    name = f"{rng.choice(LANGUAGES[split])}+{rng.choice(VARIANTS[split])}"
    return Voice(name, rng.uniform(110, 220), rng.uniform(20, 85), rng.uniform(10, 90),
                 int(rng.integers(272, 377)))


# -------------------------------------------------------------------------------- how a mouth looks

# phoneme class: viseme class, (jaw, width, rounding, bite, tongue), dominance over its neighbours
_TABLE = {
    "_": ("silence", (0.00, 0.50, 0.00, 0, 0.0), 0.7),
    "m": ("m b p", (0.00, 0.50, 0.00, 0, 0.0), 0.7),
    "b": ("m b p", (0.00, 0.50, 0.00, 0, 0.0), 0.7),
    "p": ("m b p", (0.00, 0.50, 0.00, 0, 0.0), 0.7),
    "f": ("f v", (0.12, 0.55, 0.00, 1, 0.0), 0.7),
    "v": ("f v", (0.12, 0.55, 0.00, 1, 0.0), 0.7),
    "θ": ("th", (0.22, 0.55, 0.00, 0, 1.0), 0.7),
    "ð": ("th", (0.22, 0.55, 0.00, 0, 0.9), 0.6),
    "t": ("t d n", (0.18, 0.58, 0.00, 0, 0.3), 0.4),
    "d": ("t d n", (0.20, 0.58, 0.00, 0, 0.3), 0.4),
    "n": ("t d n", (0.20, 0.55, 0.00, 0, 0.4), 0.4),
    "s": ("t d n", (0.10, 0.70, 0.00, 0, 0.0), 0.7),
    "z": ("t d n", (0.10, 0.68, 0.00, 0, 0.0), 0.7),
    "l": ("l", (0.32, 0.52, 0.00, 0, 0.9), 0.5),
    "ʃ": ("sh r w", (0.18, 0.30, 0.65, 0, 0.0), 0.9),
    "ʒ": ("sh r w", (0.18, 0.30, 0.65, 0, 0.0), 0.9),
    "ɹ": ("sh r w", (0.22, 0.35, 0.50, 0, 0.0), 0.6),
    "w": ("sh r w", (0.10, 0.12, 1.00, 0, 0.0), 1.0),
    "k": ("k h", (0.25, 0.50, 0.00, 0, 0.0), 0.25),
    "ɡ": ("k h", (0.25, 0.50, 0.00, 0, 0.0), 0.25),
    "ŋ": ("k h", (0.25, 0.50, 0.00, 0, 0.0), 0.25),
    "h": ("k h", (0.40, 0.50, 0.00, 0, 0.0), 0.1),
    "j": ("ee", (0.18, 0.85, 0.00, 0, 0.0), 0.6),
    "i": ("ee", (0.24, 1.00, 0.00, 0, 0.0), 1.0),
    "ɪ": ("ee", (0.34, 0.80, 0.00, 0, 0.0), 0.8),
    "e": ("ee", (0.46, 0.85, 0.00, 0, 0.0), 1.0),
    "ɛ": ("eh uh", (0.60, 0.72, 0.00, 0, 0.0), 1.0),
    "ə": ("eh uh", (0.42, 0.50, 0.05, 0, 0.0), 0.6),
    "ɜ": ("eh uh", (0.45, 0.40, 0.30, 0, 0.0), 1.0),
    "æ": ("ah", (0.85, 0.75, 0.00, 0, 0.0), 1.0),
    "a": ("ah", (0.95, 0.62, 0.00, 0, 0.0), 1.0),
    "ʌ": ("ah", (0.72, 0.50, 0.00, 0, 0.0), 1.0),
    "ɑ": ("ah", (1.00, 0.50, 0.00, 0, 0.0), 1.0),
    "ɒ": ("ah", (0.80, 0.35, 0.35, 0, 0.0), 1.0),
    "ɔ": ("oh oo", (0.62, 0.25, 0.65, 0, 0.0), 1.0),
    "o": ("oh oo", (0.48, 0.20, 0.80, 0, 0.0), 1.0),
    "ʊ": ("oh oo", (0.30, 0.20, 0.80, 0, 0.0), 0.9),
    "u": ("oh oo", (0.22, 0.10, 1.00, 0, 0.0), 1.0),
}
PHONEMES = list(_TABLE)  # silence first
VISEMES = {symbol: shape for symbol, (_, shape, _) in _TABLE.items()}
VISEME_CLASSES = list(dict.fromkeys(name for name, _, _ in _TABLE.values()))  # "silence" first
VISEME_OF = {symbol: VISEME_CLASSES.index(name) for symbol, (name, _, _) in _TABLE.items()}
VOWELS = set("iɪeɛəɜæaʌɑɒɔoʊu")
CLOSURES = {
    "m": 0,
    "b": 0,
    "p": 0,
    "f": 1,
    "v": 1,
}  # symbol: bite; these must be reached, whatever stands beside them

# further IPA letters of espeak-ng's English voices; marks of length, tone and the like are left out
_ALIASES = {
    "g": "ɡ",
    "r": "ɹ",
    "ɾ": "d",
    "ʔ": "k",
    "x": "k",
    "ç": "h",
    "ʍ": "w",
    "ɫ": "l",
    "ɬ": "l",
    "ɐ": "ə",
    "ɚ": "ə",
    "ᵻ": "ɪ",
    "ɨ": "ɪ",
    "ɝ": "ɜ",
    "ɘ": "ə",
    "ɵ": "o",
    "y": "u",
    "ʉ": "u",
    "ø": "ɜ",
    "c": "k",
    "q": "k",
    "ʲ": "j",
}


def atoms(ipa: str) -> list[str]:
    """The phoneme classes in an espeak symbol: "ˈaɪ" -> ["a", "ɪ"], "tʃ" -> ["t", "ʃ"]."""
    symbols = [_ALIASES.get(letter, letter) for letter in ipa]
    return [symbol for symbol in symbols if symbol in _TABLE] or ["_"]


def mouth_track(phonemes: Iterable[Phoneme], n_frames: int) -> np.ndarray:
    """Co-articulated (jaw, width, rounding, bite, tongue) at each frame's centre: (N, 5) float32.

    A Gaussian (30 ms) average of the visemes, weighted by their dominance; lips then close fully
    on m, b, p, and meet the teeth on f, v, for as long as the phoneme is heard.
    """
    dense = 200  # steps a second, on which the visemes are averaged
    phonemes = list(phonemes)
    total = n_frames * dense // FPS
    target = np.tile(np.array(VISEMES["_"]), (total, 1))  # (time, 5)
    weight = np.full(total, _TABLE["_"][2])
    for start, end, symbol, stressed in phonemes:
        shape = np.array(VISEMES[symbol])
        if symbol in VOWELS:
            rest = np.array(VISEMES["_"])
            shape = rest + (1.25 if stressed else 0.75) * (shape - rest)
        here = slice(round(start * dense), round(end * dense))
        target[here], weight[here] = shape, _TABLE[symbol][2]

    kernel = np.exp(-0.5 * (np.arange(-20, 21) / dense / 0.030) ** 2)
    near = np.convolve(np.pad(weight, 20, "edge"), kernel, "valid")
    track = np.stack(
        [
            np.convolve(np.pad(weight * column, 20, "edge"), kernel, "valid") / near
            for column in target.T
        ],
        axis=1,
    )
    middle = (np.arange(n_frames) + 0.5) / FPS
    track = track[(middle * dense).astype(int)]  # (N, 5)

    closures = [
        (start, end, symbol)
        for start, end, symbol, _ in phonemes
        if symbol in CLOSURES and (start + end) / 2 < n_frames / FPS
    ]
    centres = np.array([int((start + end) / 2 * FPS) for start, end, _ in closures], dtype=int)
    for i, (start, end, symbol) in enumerate(closures):
        beyond = np.abs(middle - (start + end) / 2) - max(0.02, (end - start) / 2)
        closed = np.clip(1 - beyond / 0.04, 0, 1)  # 1 while it is held
        closed[centres[centres != centres[i]]] = 0  # another closure has that frame
        bite = CLOSURES[symbol]
        track[:, 0] += closed * (VISEMES[symbol][0] - track[:, 0])
        track[:, 2] *= 1 - 0.5 * closed
        track[:, 3] += closed * (bite - track[:, 3])
        track[:, 4] *= 1 - closed
    return np.clip(track, 0, 1).astype(np.float32)


def viseme_track(phonemes: Iterable[Phoneme], n_frames: int) -> np.ndarray:
    """Index into VISEME_CLASSES at each frame's centre: (N,). Closures own their middle's frame."""
    track = np.zeros(n_frames, dtype=np.int64)
    phonemes = list(phonemes)
    for start, end, symbol, _ in phonemes:
        track[max(0, int(np.ceil(start * FPS - 0.5))) : max(0, int(np.ceil(end * FPS - 0.5)))] = (
            VISEME_OF[symbol]
        )
    for start, end, symbol, _ in phonemes:
        centre = int((start + end) / 2 * FPS)
        if symbol in CLOSURES and centre < n_frames:
            track[centre] = VISEME_OF[symbol]
    return track


# ----------------------------------------------------------------------------------------- speaking


@dataclass
class Speech:
    """A spoken text: wave (L,) float32 at 16 kHz in [-1, 1], and its phonemes in order."""

    wave: np.ndarray
    phonemes: list[Phoneme]


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_SYNCHRONOUS, _PHONEME_EVENTS_IPA = 2, 1 | 2
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH, _RANGE = 1, 3, 4  # parameters
_UTF8 = 1


def _say(
    text: str, voice: str, rate: float, pitch: float, pitch_range: float
) -> tuple[np.ndarray, list]:
    """espeak-ng's samples (L,) int16 at 22.05 kHz, and its phoneme events [(sample, IPA), ...].

    The library is loaded anew each time (5 ms): it keeps the phases of its oscillators from one
    text to the next, and the sound must depend on nothing but the arguments.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise InputError('the drawn world speaks with espeak-ng: pip install -e ".[toy]"') from None
    chunks, timed = [], []

    def collect(samples, count, events) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_PHONEME:
                timed.append(
                    (events[i].sample, bytes(events[i].id.string).decode("utf-8", "ignore"))
                )
            i += 1
        return 0

    callback = _CALLBACK(collect)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_path = str(espeakng_loader.get_data_path()).encode()
    rate_of_sound = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _PHONEME_EVENTS_IPA)
    if rate_of_sound != 22050:
        raise OSError("eSpeak NG cannot start; install espeakng-loader anew")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(voice.encode())
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, round(value), 0)
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
    library.espeak_Terminate()
    (_ctypes.FreeLibrary if sys.platform == "win32" else _ctypes.dlclose)(library._handle)
    return np.concatenate(chunks), timed


def resample(samples: np.ndarray, tract: int = 320) -> np.ndarray:
    """22.05 kHz (L,) -> 16 kHz (ceil(L * tract / 441),) by cutting the spectrum; no delay.

    With another `tract` than 320 the sound comes out slower or faster, as from a tape.
    """
    size = 441 << max(0, (len(samples) // 441).bit_length())  # 22050 : 16000 = 441 : 320
    out = size * tract // 441
    spectrum = np.fft.rfft(samples, size)[: out // 2 + 1]
    return np.fft.irfft(spectrum, out)[: -(-len(samples) * tract // 441)] * (tract / 441)


def speak(text: str, voice: Voice, arousal: float = 0.0) -> Speech:
    """Say a text. Arousal (-1..1) moves rate by 8 %, pitch by 5 steps and loudness by 20 %."""
    samples, events = _say(
        text,
        voice.name,
        voice.rate * (1 + 0.08 * arousal) * voice.tract / 320,  # the tape slows it again
        voice.pitch + 5 * arousal,
        voice.pitch_range,
    )
    wave = resample(samples / 32768, voice.tract) * (0.8 * (1 + 0.2 * arousal))

    rate = 22050 * 320 / voice.tract
    starts = [sample / rate for sample, _ in events]
    ends = starts[1:] + [len(samples) / rate]
    phonemes = []
    for start, end, (_, ipa) in zip(starts, ends, events):
        symbols = atoms(ipa)
        step = (end - start) / len(symbols)
        stressed = "ˈ" in ipa or "ˌ" in ipa
        phonemes += [
            (start + i * step, start + (i + 1) * step, symbol, stressed)
            for i, symbol in enumerate(symbols)
        ]
    return Speech(np.clip(wave, -1, 1).astype(np.float32), _align(phonemes, wave))


def _align(phonemes: list[Phoneme], wave: np.ndarray) -> list[Phoneme]:
    """Move the borders of closed consonants to where they are heard.

    espeak-ng counts the silence before a stop to the sound before it, and up to 40 ms of the
    opening into the next vowel to the consonant. So a stop begins where the sound dies before it,
    and a closure ends where the sound rises most.
    """
    hop, half = 40, 80  # level of 10 ms, every 2.5 ms
    power = np.concatenate([[0], np.cumsum(np.pad(wave.astype(np.float64) ** 2, half))])
    level = np.log(np.maximum(power[2 * half :: hop] - power[: -2 * half : hop], 0) + 1e-3)
    silence = level.max() - 7  # 30 dB
    step = hop / SAMPLE_RATE
    moved = [list(phoneme) for phoneme in phonemes]
    for before, this, after in zip([None] + moved, moved, moved[1:]):
        start, end, symbol, _ = this
        if symbol in "pbtdkɡ" and before is not None:
            burst = round(start / step)
            i = burst - 3
            while burst - i < 32 and i * step > before[0] + 0.02 and level[i] < silence:
                i -= 1
            if i < burst - 3:
                this[0] = before[1] = i * step
        if symbol in "mnŋpbtdkɡ" and end - this[0] > 0.03 and after[2] in VOWELS | set("lɹwj"):
            first, last = round((this[0] + 0.02) / step), round(end / step)
            rise = (
                level[first + 2 : last + 2]
                - level[first - 2 : last - 2][: len(level[first + 2 : last + 2])]
            )
            if len(rise):
                release = (first + np.argmax(rise)) * step + (
                    0.015 if symbol in "ptk" else 0
                )  # with its burst
                this[1] = after[0] = min(end, release)
    return [tuple(phoneme) for phoneme in moved]


# -------------------------------------------------------------------------------- where it is heard


def acoustics(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random room, microphone, noise floor and level; timing stays: (L,) -> (L,) float32."""
    length = len(wave)
    tail = int(rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 2))
    impulse = rng.standard_normal(tail) * np.exp(-6.9 * np.arange(tail) / tail)
    impulse *= rng.uniform(0, 0.7) / np.linalg.norm(impulse)
    impulse[0] = 1  # the direct sound keeps its place

    size = 1 << (length + tail).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    low, high = rng.uniform(40, 350), rng.uniform(2800, 8000)
    band = 1 / np.sqrt(1 + (low / np.maximum(hertz, 1)) ** 4) / np.sqrt(1 + (hertz / high) ** 8)
    octave = np.log2(np.maximum(hertz, 50) / 50)  # 0 to 7.3
    curve = rng.uniform(-3, 3) * (octave - 4)  # dB: a slope, and slow waves
    for n in (2, 3, 5):
        curve += rng.normal(0, 3) * np.cos(np.pi * n * octave / 7.3 + rng.uniform(0, 6.3))
    band *= 10 ** (curve / 20)
    # Breath: noise as loud as the voice at each moment, which a synthesised voice lacks.
    loud = np.convolve(np.abs(wave), np.hanning(160) / 80, "same")
    wave = wave + rng.uniform(0, 0.35) ** 2 * loud * rng.standard_normal(length)
    heard = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(impulse, size) * band, size)[:length]

    colour = np.maximum(hertz, 20) ** -rng.uniform(0, 1)  # from white to brown
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * colour * band, size)[:length]
    loudness = np.sqrt(np.mean(heard**2)) + 1e-4
    heard += noise / np.sqrt(np.mean(noise**2)) * loudness * 10 ** (-rng.uniform(12, 60) / 20)
    heard /= np.sqrt(np.mean(heard**2)) + 1e-6
    press = rng.uniform(0, 0.5)  # a compressor evens the loud and the quiet
    heard = np.tanh(press * heard) / press if press > 0.1 else heard
    heard *= 10 ** (-rng.uniform(12, 40) / 20)
    return np.clip(heard, -1, 1).astype(np.float32)
