"""Promises of music: notes survive the way through events and MIDI files, and bad files say why they are left out."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.api_error import ApiError
from cluster.serving.completions_schema import ServedModel, parse_completions
from gpt_core.documents.document_batch import Document, ReadingOptions, Reject
from gpt_core.documents.reader import read_documents
from gpt_core.documents.shard_plan import Piece, ShardPlan
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.errors import SettingsError
from gpt_core.exchange.huggingface import write_tokenizer
from gpt_core.generation.prompts import read_range, scan_prompts
from gpt_core.generation.request import Sampling
from gpt_core.settings import TokenizerSettings, TokenizeSettings
from gpt_core.tokens.midi import DamagedMidiError, read_midi, write_midi
from gpt_core.tokens.music import (
    NUM_EVENTS,
    WORDS,
    Note,
    bin_velocity,
    events_of,
    notes_of,
    text_of,
    velocity_bin,
    with_pedal,
)
from gpt_core.tokens.tokenizer import load_tokenizer

symusic = pytest.importorskip("symusic", reason="pip install symusic (the extra music)")


@st.composite
def performances(draw):
    """Notes as a keyboard can play them: on each pitch one after the other, velocities of the 32 bins."""
    notes = []
    for pitch in draw(st.sets(st.integers(0, 127), min_size=1, max_size=4)):
        now = 0
        for gap, length, number in draw(
            st.lists(st.tuples(st.integers(0, 250), st.integers(1, 400), st.integers(0, 31)), min_size=1, max_size=5)
        ):
            notes.append(Note(now + gap, pitch, now + gap + length, bin_velocity(number)))
            now += gap + length
    return sorted(notes)


@given(performances())
def test_notes_survive_the_way_through_events(notes):
    assert notes_of(events_of(notes)) == notes


@given(performances())
def test_notes_survive_the_way_through_a_midi_file(notes):
    assert read_midi(write_midi(notes)) == notes


@given(st.lists(st.integers(0, NUM_EVENTS), max_size=60))
def test_whatever_a_model_writes_is_music_that_events_can_say_again(events):
    notes = notes_of(events)
    assert all(note.start < note.end for note in notes)
    if notes:
        again = notes_of(events_of(read_midi(write_midi(notes))))
        assert again == notes_of(events_of(notes))


def test_events_are_those_of_the_paper_in_their_order():
    notes = [Note(0, 60, 150, 80), Note(150, 64, 151, 81), Note(150, 60, 160, 20)]
    # 80 lies in bin 19 (77..80), 81 in bin 20 (81..84), 20 in bin 4 (17..20).
    expected = "v19 on60 t100 t50 off60 v4 on60 v20 on64 t1 off64 t9 off60 "
    assert text_of(events_of(notes)) == expected
    assert [len([w for w in WORDS if w.startswith(kind)]) for kind in ("on", "of", "t", "v")] == [128, 128, 100, 32]


def test_velocities_fall_into_32_bins_of_four():
    bins = [velocity_bin(velocity) for velocity in range(1, 128)]
    assert bins == [(velocity - 1) // 4 for velocity in range(1, 128)]
    assert all(velocity_bin(bin_velocity(number)) == number for number in range(32))
    assert max(abs(bin_velocity(velocity_bin(v)) - v) for v in range(1, 128)) <= 2


def test_the_pedal_makes_notes_last_until_it_is_lifted():
    notes = [Note(0, 60, 10, 62), Note(5, 64, 40, 62), Note(50, 60, 60, 62)]
    assert with_pedal(notes, [(8, 30), (60, 70)]) == [
        Note(0, 60, 30, 62), Note(5, 64, 40, 62), Note(50, 60, 70, 62),
    ]  # fmt: skip


def test_a_midi_file_is_read_at_its_tempi_with_its_pedal_and_without_drums():
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, qpm=60.0))
    score.tempos.append(symusic.Tempo(480, qpm=120.0))
    piano, drums = symusic.Track("piano", 0, False), symusic.Track("drums", 0, True)
    piano.notes.append(symusic.Note(0, 480, 60, 100))  # one second
    piano.notes.append(symusic.Note(480, 480, 62, 7))  # half a second at the new tempo
    piano.controls.append(symusic.ControlChange(240, 64, 127))
    piano.controls.append(symusic.ControlChange(720, 64, 0))  # 1.25 s
    drums.notes.append(symusic.Note(0, 480, 36, 100))
    score.tracks.append(piano)
    score.tracks.append(drums)
    assert read_midi(score.dumps_midi()) == [Note(0, 60, 125, 100), Note(100, 62, 150, 7)]


def test_damaged_files_are_rejects_with_a_reason_and_whole_ones_documents(tmp_path):
    whole = write_midi([Note(0, 60, 50, 62), Note(50, 64, 90, 62)])
    (tmp_path / "a.mid").write_bytes(whole)
    (tmp_path / "cut.mid").write_bytes(whole[:-20])
    (tmp_path / "empty.midi").write_bytes(b"")
    (tmp_path / "silent.mid").write_bytes(write_midi([]))
    (tmp_path / "notes.txt").write_text("no music")
    files = list_files(SourceSpec("music", (str(tmp_path),), kind="midi"))
    assert [file.name for file in files] == ["a.mid", "cut.mid", "empty.midi", "silent.mid"]
    plan = ShardPlan(0, "music", tuple(map(Piece, files)))
    found = list(read_documents(plan, ReadingOptions()))
    documents = [one for one in found if isinstance(one, Document)]
    assert [one.text for one in documents] == ["v15 on60 t50 off60 on64 t40 off64 "]
    reasons = {one.file: one.reason for one in found if not isinstance(one, Document)}
    assert "damaged file" in reasons["cut.mid"]
    assert "damaged file" in reasons["empty.midi"]
    assert reasons["silent.mid"] == "found no note outside of drums; expected at least one"


def midi_file(ticks_a_quarter: int, *events: str) -> bytes:
    """Return a MIDI file of one track by the file format's own definition; events in hexadecimal, with their delays."""
    track = bytes.fromhex("".join(events) + "00ff2f00")
    head = b"MThd" + (6).to_bytes(4) + b"".join(n.to_bytes(2) for n in (0, 1, ticks_a_quarter))
    return head + b"MTrk" + len(track).to_bytes(4) + track


ON, OFF, OFF_AFTER_WEEKS = "00903c40", "60803c00", "ffffff7f803c00"
SLOWEST = "00ff5103ffffff"  # 16.8 seconds a quarter


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (midi_file(0, ON, OFF), "0 ticks a quarter"),
        (midi_file(1, SLOWEST, ON, OFF_AFTER_WEEKS), "more than 24 hours"),
        (midi_file(1, SLOWEST, ON, OFF, "00b0407f", "ffffff7fb04000"), "more than 24 hours"),  # the pedal's end
        (midi_file(480, *["ffffff7fb00740"] * 9, ON, OFF), "more than 24 hours"),  # ticks beyond 32 bits
    ],
)
def test_times_that_no_music_has_are_rejects_and_no_prompts(data, reason, tmp_path):
    (tmp_path / "a.mid").write_bytes(data)
    files = list_files(SourceSpec("music", (str(tmp_path),), kind="midi"))
    [reject] = read_documents(ShardPlan(0, "music", (Piece(files[0]),)), ReadingOptions())
    assert isinstance(reject, Reject)
    assert reason in reject.reason
    assert reason in scan_prompts((str(tmp_path / "a.mid"),), Sampling(), 4).rejects[0].reason


def test_a_midi_file_of_the_format_s_own_bytes_is_read():
    assert read_midi(midi_file(480, ON, "8360803c00")) == [Note(0, 60, 50, 64)]  # 480 ticks at 120 a minute


def test_a_midi_file_is_a_prompt_to_continue(tmp_path):
    whole = write_midi([Note(0, 60, 50, 62)])
    (tmp_path / "theme.mid").write_bytes(whole)
    (tmp_path / "cut.mid").write_bytes(whole[:-20])
    scan = scan_prompts((str(tmp_path / "*.mid"),), Sampling(), 4)
    [cut] = scan.ranges
    [prompt] = read_range(scan.files, cut, Sampling())
    assert (prompt.id, prompt.text) == ("theme.mid:1", "v15 on60 t50 off60 ")
    [reject] = scan.rejects
    assert reject.file == "cut.mid"
    assert "damaged file" in reject.reason


def test_no_damage_crashes_the_reader():
    whole = write_midi([Note(i * 10, 40 + i % 40, i * 10 + 25, 62) for i in range(40)])
    draw = random.Random(0)
    outcomes = set()
    for _ in range(300):
        bad = bytearray(whole)
        for _ in range(4):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        try:
            read_midi(bytes(bad))
            outcomes.add("read")
        except DamagedMidiError as error:
            outcomes.add(str(error).split(maxsplit=1)[0])
    assert outcomes == {"read", "found"}


def test_the_music_tokenizer_reads_words_and_names_those_it_does_not_know():
    tokenizer = load_tokenizer("music")
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text) == (389, 388)
    ids = tokenizer.encode("v16 on60 t100\noff60")
    assert ids.tolist() == [356 + 16, 60, 256 + 99, 128 + 60]
    assert tokenizer.decode(ids) == "v16 on60 t100 off60 "
    assert tokenizer.decode_bytes([60, 388]) == b"on60 <|endoftext|>"
    flat, offsets = tokenizer.encode_many(["v0 ", "", "on0 off0 "])
    assert (flat.tolist(), offsets.tolist(), flat.dtype) == ([356, 0, 128], [0, 1, 1, 3], np.uint16)
    with pytest.raises(SettingsError, match="found the word 'c4'; expected events such as v16"):
        tokenizer.encode("v16 c4")


def test_the_service_refuses_a_prompt_with_a_word_that_is_no_event():
    model = ServedModel("tiny", load_tokenizer("music"), window_tokens=32, fingerprint="herd-0", created=0)
    with pytest.raises(ApiError) as caught:
        parse_completions({"prompt": "v16 c4"}, model, 8)
    assert caught.value.status == 400
    assert "found the word 'c4'" in str(caught.value)


def test_an_exported_vocabulary_reads_the_same_words(tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    write_tokenizer(tmp_path, "music", 64)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "v22 on60 on64 t50 off60 t1 off64"
    assert exported(text)["input_ids"] == load_tokenizer("music").encode(text).tolist()
    assert (exported.eos_token_id, len(exported)) == (388, 389)


def test_kind_midi_takes_the_music_vocabulary():
    settings = TokenizeSettings(output="o", input=("x",), kind="midi")
    assert settings.tokenizer.name == "music"
    for name in ("bytes", "gpt2"):
        with pytest.raises(ValueError, match=f"kind midi with the tokenizer '{name}'"):
            TokenizeSettings(output="o", input=("x",), kind="midi", tokenizer=TokenizerSettings(name=name))
