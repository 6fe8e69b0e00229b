"""Non-speech vocalisations of the toy world: sounds of 0.5 to 3 s, each with its gesture.

The paper's NSVs in small. A sound is a glottal pulse train or breath noise, shaped by
an envelope and sent through moving formants; the same envelope moves the face. `vocalise` gives
sound (L,) at 16 kHz and gestures (n,) at 25 fps.
"""

from collections.abc import Callable

import numpy as np

from tools.media import FPS, SAMPLE_RATE

KINDS = ("laugh", "sigh", "cough", "yawn", "throat-clear", "mhm", "gasp")
MARGIN = (
    0.08  # seconds of silence at either end, in which the face begins to move and comes to rest
)

Curve = Callable[[np.ndarray], np.ndarray]  # seconds -> value
OPEN, NEUTRAL, NASAL, BACK = (
    (800, 1250, 2600),
    (500, 1500, 2500),
    (260, 1050, 2250),
    (600, 1000, 2400),
)  # formants, Hz


def hump(start: float, rise: float, fall: float) -> Curve:
    """0 before `start`, 1 after `rise` seconds, then dying away with time constant `fall`."""
    return lambda t: (
        np.sin(np.pi / 2 * np.clip((t - start) / rise, 0, 1)) ** 2
        * np.exp(-np.maximum(t - start - rise, 0) / fall)
    )


def plateau(start: float, end: float, rise: float, fall: float) -> Curve:
    """0, up within `rise` after `start`, 1, down within `fall` before `end`, 0."""
    return lambda t: (
        np.sin(np.pi / 2 * np.clip((t - start) / rise, 0, 1)) ** 2
        * np.sin(np.pi / 2 * np.clip((end - t) / fall, 0, 1)) ** 2
    )


def total(curves: list[Curve]) -> Curve:
    return lambda t: np.minimum(sum(curve(t) for curve in curves), 1)


def glottis(hertz: np.ndarray, rng: np.random.Generator, jitter: float = 0.01) -> np.ndarray:
    """Pulses of the voice at a pitch given per sample; jitter makes it rough: (L,)."""
    knots = np.arange(0, len(hertz) + 100, 100)
    wobble = np.interp(np.arange(len(hertz)), knots, rng.standard_normal(len(knots)))
    phase = np.cumsum(hertz * (1 + jitter * wobble)) / SAMPLE_RATE % 1
    flow = np.where(
        phase < 0.4, np.sin(np.pi / 0.8 * phase) ** 2, np.cos(np.pi / 0.4 * (phase - 0.4)).clip(0)
    )
    return np.diff(flow, prepend=flow[0]) * 8


def tract(
    source: np.ndarray, formants: list[tuple[float, tuple]], damping: float = 0.12
) -> np.ndarray:
    """Resonators moving between formants [(second, (F1, F2, F3)), ...]: (L,) -> (L,)."""
    size, hop = 512, 128
    window = np.hanning(size + 1)[:-1] ** 0.5
    count = len(source) // hop + 1
    padded = np.pad(source, (size // 2, size))
    blocks = (
        np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:count] * window
    )  # (count, size)
    at = np.arange(count) * hop / SAMPLE_RATE
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    gain = np.tile(hertz**2 / (hertz**2 + 80**2), (count, 1))
    for k in range(3):
        centre = np.interp(at, [t for t, _ in formants], [f[k] for _, f in formants])[:, None]
        ratio = hertz / centre
        gain /= np.sqrt(
            (1 - ratio**2) ** 2 * (0.3 + 0.7 * np.exp(-ratio)) + (damping * ratio) ** 2 + 1e-4
        )
    blocks = np.fft.irfft(np.fft.rfft(blocks) * gain, size) * window
    out = np.zeros(len(padded) + size)
    for i, block in enumerate(blocks):
        out[i * hop : i * hop + size] += block
    return out[size // 2 : size // 2 + len(source)]


def vocalise(
    kind: str, rng: np.random.Generator, pitch_hz: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A sound (L,) float32 at 16 kHz and the gesture {state name: (n,) float32}, n = ceil(L / 640).

    Every gesture is an amount to be *added* to the state (width: to the rest of .5; eye_open: to
    the opening that the emotion gives), whose columns are clipped to their ranges
    afterwards; ends are 0.
    """
    seconds, sound, face = _MAKERS[kind](rng, pitch_hz)
    seconds += 2 * MARGIN
    frames = int(np.ceil(seconds * FPS))
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE - MARGIN
    wave = sound(t)
    wave *= plateau(-MARGIN, seconds - MARGIN, MARGIN, MARGIN)(t)
    wave *= rng.uniform(0.25, 0.6) / np.abs(wave).max()

    middle = (np.arange(frames) + 0.5) / FPS - MARGIN
    border = np.minimum(np.arange(frames), np.arange(frames)[::-1]).clip(max=3) / 3
    strength = rng.uniform(0.85, 1.1)
    return wave.astype(np.float32), {
        name: (strength * curve(middle) * border).astype(np.float32) for name, curve in face.items()
    }


# Each maker: (rng, pitch) -> seconds, sound (t -> wave), face {name: curve}. The sound begins at
# t = 0; the margins lie before that and after its end.


def _laugh(rng, pitch):
    period = rng.uniform(0.17, 0.25)
    count = rng.integers(4, 10)
    seconds = period * count + 0.15
    pulses = total([hump(i * period, 0.3 * period, 0.25 * period) for i in range(count)])
    fade = np.array([1, rng.uniform(0.4, 0.8)])
    top, drop, vowel = pitch * rng.uniform(1.4, 2.1), rng.uniform(0.6, 0.95), rng.choice(2)

    def sound(t):
        level = pulses(t) * np.interp(t, [0, seconds], fade)
        hertz = top * (1 + (drop - 1) * t.clip(0) / seconds) * (0.9 + 0.2 * pulses(t))
        breath = rng.standard_normal(len(t)) * (0.05 + 0.3 * np.sqrt(level) * (1 - pulses(t)))
        return tract(
            (glottis(hertz, rng, 0.02) + 0.15 * breath) * level + 0.03 * breath,
            [(0, (NEUTRAL, OPEN)[vowel])],
        )

    held, tilt = plateau(-0.08, seconds + 0.08, 0.2, 0.3), rng.choice([-0.6, 0.6])
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: (0.2 + 0.6 * pulses(t + 0.02)) * held(t),
            "width": lambda t: 0.35 * held(t),
            "smile": lambda t: 0.7 * held(t),
            "cheek": lambda t: 0.95 * held(t),
            "eye_open": lambda t: -0.45 * held(t),
            "brow_height": lambda t: 0.3 * held(t),
            "tilt": lambda t: tilt * held(t),
            "head_y": lambda t: (0.9 * pulses(t + 0.02) - 0.5) * held(t),
        },
    )


def _sigh(rng, pitch):
    seconds = rng.uniform(1.1, 2.0)
    level = hump(0, 0.25, seconds / 3.5)
    voiced = rng.uniform(0, 0.25)

    def sound(t):
        hertz = pitch * (1.15 - 0.5 * t.clip(0) / seconds)
        source = rng.standard_normal(len(t)) * 0.3 + voiced * glottis(hertz, rng, 0.03)
        return tract(source * level(t), [(0, OPEN), (seconds, (400, 1100, 2300))], damping=0.3)

    sink = plateau(0, seconds + 0.08, 0.6 * seconds, 0.35)
    open_ = plateau(-0.05, seconds, 0.25, 0.6 * seconds)
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: 0.4 * open_(t),
            "rounding": lambda t: 0.5 * open_(t),
            "width": lambda t: -0.25 * open_(t),
            "smile": lambda t: -0.5 * sink(t),
            "brow_slope": lambda t: 0.7 * sink(t),
            "brow_height": lambda t: -0.7 * sink(t),
            "eye_open": lambda t: -0.4 * sink(t),
            "gaze_y": lambda t: 0.7 * sink(t),
            "head_y": lambda t: 1.0 * sink(t),
        },
    )


def _cough(rng, pitch):
    period = rng.uniform(0.26, 0.36)
    count = rng.integers(2, 4)
    seconds = period * count + 0.1
    bursts = total([hump(i * period, 0.012, 0.05) for i in range(count)])
    jerks = total([hump(i * period - 0.06, 0.06, 0.10) for i in range(count)])

    def sound(t):
        voiced = total([hump(i * period + 0.03, 0.03, 0.04) for i in range(count)])
        source = rng.standard_normal(len(t)) * bursts(t) + 0.7 * voiced(t) * glottis(
            np.full(len(t), 1.2 * pitch), rng, 0.15
        )
        return tract(source, [(0, BACK)], damping=0.25)

    held, turn = plateau(-0.08, seconds + 0.08, 0.12, 0.15), rng.choice([-0.3, 0.3])
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: 0.55 * jerks(t) * held(t),
            "rounding": lambda t: 0.35 * held(t),
            "width": lambda t: -0.1 * held(t),
            "eye_open": lambda t: -1.0 * held(t),
            "cheek": lambda t: 0.5 * held(t),
            "brow_height": lambda t: -0.7 * held(t),
            "brow_slope": lambda t: -0.6 * held(t),
            "head_x": lambda t: turn * held(t),
            "head_y": lambda t: (1.5 * jerks(t) - 0.3) * held(t),
        },
    )


def _yawn(rng, pitch):
    seconds = rng.uniform(1.9, 2.8)
    level = plateau(0, seconds, 0.35 * seconds, 0.5 * seconds)
    voiced = rng.uniform(0.3, 0.8)

    def sound(t):
        hertz = pitch * np.interp(t / seconds, [0, 0.4, 1], [1.0, 1.5, 0.7])
        source = voiced * glottis(hertz, rng) + 0.12 * rng.standard_normal(len(t))
        return tract(
            source * level(t),
            [(0, (400, 1300, 2400)), (seconds * 0.4, OPEN), (seconds, (350, 900, 2300))],
        )

    gape, tilt = (
        plateau(-0.05, seconds + 0.05, 0.45 * seconds, 0.45 * seconds),
        rng.choice([-0.5, 0.5]),
    )
    shut = plateau(0.15 * seconds, seconds, 0.25 * seconds, 0.3 * seconds)
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: 1.1 * gape(t),
            "width": lambda t: -0.25 * gape(t),
            "rounding": lambda t: 0.2 * gape(t),
            "eye_open": lambda t: -1.2 * shut(t),
            "brow_height": lambda t: 0.9 * gape(t),
            "brow_slope": lambda t: 0.3 * gape(t),
            "head_y": lambda t: -0.9 * gape(t),
            "tilt": lambda t: tilt * gape(t),
        },
    )


def _throat_clear(rng, pitch):
    first, second = rng.uniform(0.14, 0.22), rng.uniform(0.25, 0.45)
    seconds = first + 0.08 + second
    level = total([plateau(0, first, 0.03, 0.06), plateau(first + 0.08, seconds, 0.03, 0.15)])

    def sound(t):
        source = glottis(np.full(len(t), 0.7 * pitch), rng, 0.25) + 0.35 * rng.standard_normal(
            len(t)
        )
        growl = 0.7 + 0.3 * np.sign(np.sin(2 * np.pi * 28 * t))
        return tract(source * level(t) * growl, [(0, (420, 1100, 2300))], damping=0.25)

    held, aside = plateau(-0.08, seconds + 0.08, 0.14, 0.18), rng.choice([-1, 1])
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: 0.16 * level(t),
            "width": lambda t: -0.35 * held(t),
            "smile": lambda t: -0.35 * held(t),
            "brow_slope": lambda t: -0.3 * held(t),
            "gaze_x": lambda t: 1.0 * aside * held(t),
            "gaze_y": lambda t: 0.4 * held(t),
            "head_x": lambda t: 1.0 * aside * held(t),
            "head_y": lambda t: 0.35 * held(t) + 0.3 * level(t),
        },
    )


def _mhm(rng, pitch):
    first, gap, second = rng.uniform(0.16, 0.26), rng.uniform(0.06, 0.14), rng.uniform(0.22, 0.4)
    seconds = first + gap + second
    hums = total([plateau(0, first, 0.05, 0.07), plateau(first + gap, seconds, 0.06, 0.15)])
    rising = rng.uniform(1.15, 1.5)

    def sound(t):
        hertz = pitch * np.interp(
            t, [0, first, first + gap, seconds], [1.0, 0.9, rising, 0.95 * rising]
        )
        return tract(glottis(hertz, rng) * hums(t), [(0, NASAL)], damping=0.35)

    held = plateau(-0.08, seconds + 0.08, 0.15, 0.2)
    return (
        seconds,
        sound,
        {
            "smile": lambda t: 0.35 * held(t),
            "width": lambda t: 0.15 * held(t),
            "brow_height": lambda t: 0.8 * held(t),
            "cheek": lambda t: 0.3 * held(t),
            "head_y": lambda t: (1.6 * hums(t) - 0.5) * held(t),
        },
    )


def _gasp(rng, pitch):
    inhale, hold = rng.uniform(0.22, 0.4), rng.uniform(0.25, 0.5)
    seconds = inhale + hold
    level = plateau(0, inhale, 0.7 * inhale, 0.06)

    def sound(t):
        source = rng.standard_normal(len(t)) + 0.15 * glottis(
            np.full(len(t), 1.8 * pitch), rng, 0.05
        )
        return tract(
            source * level(t), [(0, (450, 1500, 2700)), (inhale, (850, 1700, 2900))], damping=0.2
        )

    shock = plateau(-0.08, seconds + 0.08, 0.16, 0.3)
    return (
        seconds,
        sound,
        {
            "jaw": lambda t: 0.65 * shock(t),
            "rounding": lambda t: 0.35 * shock(t),
            "width": lambda t: -0.15 * shock(t),
            "eye_open": lambda t: 0.7 * shock(t),
            "brow_height": lambda t: 1.2 * shock(t),
            "head_y": lambda t: -1.0 * shock(t),
        },
    )


_MAKERS = dict(zip(KINDS, (_laugh, _sigh, _cough, _yawn, _throat_clear, _mhm, _gasp)))
