"""Laws of the sound's way to tokens, with tiny random encoders: lengths, chunks, alignment."""

from dataclasses import replace

import pytest
import torch

from audio import MARGIN, AudioConfig, AudioEncoder, cut
from tools.media import FRAME_SAMPLES, SAMPLE_RATE

CONFIGS = {"aligned": AudioConfig.tiny(),
           "aligned wav2vec2": replace(AudioConfig.tiny(), speech="wav2vec2"),
           "released": replace(AudioConfig.tiny(), mapping="released"),
           "released wav2vec2": replace(AudioConfig.tiny(), mapping="released", speech="wav2vec2"),
           "released in chunks": replace(AudioConfig.tiny(), mapping="released",
                                         max_whole_seconds=0)}


@pytest.fixture(params=CONFIGS, scope="module")
def encoder(request):
    torch.manual_seed(0)
    return AudioEncoder(CONFIGS[request.param])


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * SAMPLE_RATE), generator=generator)


@pytest.mark.parametrize("samples, frames", [(1, 1), (400, 1), (640, 1), (641, 2), (1281, 3),
                                             (3839, 6), (16000, 25), (20000, 32)])
def test_frame_count(encoder, samples, frames):
    tokens = encoder(noise(samples / SAMPLE_RATE))
    assert tokens.shape == (frames, 2, encoder.config.width)
    assert tokens.isfinite().all()


def test_range_is_a_slice(encoder):
    wave = noise(25)
    whole = encoder(wave)
    for start, stop in ((0, 1), (219, 221), (100, 500), (624, 625), (600, 625)):
        assert torch.equal(encoder.encode(wave.clone(), start, stop), whole[start:stop])


def test_a_recording_heard_whole_is_heard_once(monkeypatch):
    encoder = AudioEncoder(CONFIGS["released"]).eval()
    heard, piece = [], encoder._piece
    monkeypatch.setattr(encoder, "_piece", lambda *a: heard.append(a[1]) or piece(*a))
    for wave in (noise(0.5), noise(0.5, 1)):
        tokens = torch.cat([encoder.encode(wave, 0, 5), encoder.encode(wave, 5, 13)])
        assert tokens.equal(AudioEncoder.encode(encoder, wave.clone(), 0, 13))
    assert len(heard) == 4  # each, and its copy


def test_past_the_end_ours_hears_silence_and_the_released_repeats_its_last_tokens(encoder):
    wave = noise(3)
    past = encoder.encode(wave, 70, 90)
    if encoder.config.mapping == "released":
        assert torch.equal(past, encoder(wave)[[70, 71, 72, 73, *[74] * 16]])
        assert torch.equal(encoder.encode(wave, 80, 90), past[10:])
    else:
        silence = torch.zeros(15 * FRAME_SAMPLES)
        assert torch.equal(past, encoder(torch.cat([wave, silence]))[70:])


def test_tokens_do_not_depend_on_what_follows():
    """Two sounds that agree up to t have the same tokens up to one chunk before t."""
    encoder = AudioEncoder(AudioConfig.tiny())
    shared, seconds = noise(21), 21
    longer = torch.cat([shared, noise(19, seed=1)])
    same = seconds * 25 - encoder.config.chunk_frames
    short, long = encoder(shared), encoder(longer)
    assert torch.equal(short[:same], long[:same])
    assert not torch.equal(short, long[: len(short)])
    # The end of a sound is silence, not something else.
    silence = torch.cat([shared, torch.zeros(19 * SAMPLE_RATE)])
    assert torch.equal(encoder(silence)[: len(short)], short)


def test_an_hour_is_heard_as_its_minutes_alone():
    """Its first and last minute, cut on the grid of chunks, have the same tokens alone as in it."""
    encoder = AudioEncoder(AudioConfig.tiny())
    hop = encoder.config.chunk_frames - encoder.config.overlap_frames
    hour = torch.zeros(3600 * SAMPLE_RATE)  # silence takes no memory: nobody writes it
    for i, stretch in enumerate((slice(0, 70 * SAMPLE_RATE), slice(-70 * SAMPLE_RATE, None))):
        hour[stretch] = noise(70, seed=i)
    first = encoder.encode(hour, 0, 60 * 25)
    assert torch.equal(first, encoder.encode(hour[: 70 * SAMPLE_RATE], 0, 60 * 25))
    start, stop = 3540 * 25, 3600 * 25
    cut = (start // hop - 1) * hop  # a chunk before that of `start`: a chunk hears a margin, too
    last = encoder.encode(hour, start, stop)
    assert torch.equal(last, encoder.encode(hour[cut * FRAME_SAMPLES :], start - cut, stop - cut))
    assert not torch.equal(last, first)


def test_aligned_tokens_see_their_own_instant():
    """Each encoder gets its chunk with margins that centre a token on its own sound."""
    encoder = AudioEncoder(AudioConfig.tiny())
    seen = {}
    for name, module in (("speech", encoder.speech.feature_extractor.conv_layers[0].conv),
                         ("events", encoder.events.patch_embedding)):
        module.register_forward_hook(lambda _, x, y, name=name: seen.__setitem__(name, x[0]))
    frame = 80  # begins a time patch
    wave = torch.zeros(100 * FRAME_SAMPLES)  # one chunk
    wave[frame * FRAME_SAMPLES] = 1
    encoder(wave)
    # 400 samples about the 320 of token 2 * frame: 40 of them lie before its beginning.
    assert seen["speech"][0, 0].argmax() == 320 * 2 * frame + 40
    # 25 ms windows: those with the click lie symmetrically about the patch's beginning.
    events = seen["events"][0, 0].amax(-1)
    loud = (events > events[0]).nonzero().flatten() * 160 - 120
    assert (loud.min() + loud.max() + 400) / 2 == pytest.approx(frame * FRAME_SAMPLES, abs=80)


def test_aligned_tokens_are_the_encoders_own_features():
    """A frame has two of WavLM's, and with three others the mean of BEATs' eight for a patch."""
    encoder = AudioEncoder(AudioConfig.tiny())
    wave, end = noise(8), encoder.config.chunk_frames * FRAME_SAMPLES  # of the only chunk
    speech, events = encoder(wave).split(encoder.config.wavlm.hidden_size, -1)  # (200, 2, 64)
    heard = encoder.speech(cut(wave, -40, end + 40)[None]).last_hidden_state[0]
    assert speech.flatten(0, 1).equal(heard[:400])
    heard = encoder.events(cut(wave, -MARGIN, end + MARGIN)[None])[0].unflatten(0, (-1, 8)).mean(1)
    for frame in (0, 3, 4, 101, 199):
        assert events[frame].equal(heard[frame // 4].expand(2, -1))


def test_chunks_meet_in_the_middle_of_their_overlap():
    """So every frame has sound on both sides of it, at least half an overlap."""
    encoder = AudioEncoder(AudioConfig.tiny())
    size, overlap = encoder.config.chunk_frames, encoder.config.overlap_frames
    wave, hop = noise(16), size - overlap
    whole, chunks = encoder(wave), []
    for first in (0, hop):
        a, b = first * FRAME_SAMPLES, (first + size) * FRAME_SAMPLES
        chunks.append(encoder._piece(wave, wave, a, b))
    seam = hop + overlap // 2
    assert whole[seam - 1].equal(chunks[0][seam - 1])
    assert whole[seam].equal(chunks[1][seam - hop])
    assert not chunks[0][seam].equal(chunks[1][seam - hop])


def test_refuses_what_it_cannot_do():
    for wrong in ({"speech": "hubert"}, {"mapping": "late"}, {"chunk_frames": 250},
                  {"overlap_frames": 240}, {"overlap_frames": 4}):
        with pytest.raises(ValueError):
            replace(AudioConfig.tiny(), **wrong)
