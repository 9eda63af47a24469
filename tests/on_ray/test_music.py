"""Music on Ray: MIDI files to a corpus, and a music checkpoint's rows to MIDI files."""

import json
from pathlib import Path

from cluster import generating, tokenizing
from cluster.session import Cluster
from cluster.tracking import TrackingOptions, open_run
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.settings import EngineSettings, GenerateSettings, SamplingSettings, TokenizeSettings
from gpt_core.tokens.midi import read_midi, write_midi
from gpt_core.tokens.music import Note, notes_of
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description

OFF = TrackingOptions(enabled=False, system_seconds=None)


def test_midi_files_become_a_corpus_and_generated_rows_midi_files(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for index in range(6):
        notes = [Note(step * 20, 50 + (step * (index + 1)) % 30, step * 20 + 30, 62) for step in range(40)]
        (tmp_path / "scores" / f"{index}.mid").write_bytes(write_midi(notes))
    whole = (tmp_path / "scores" / "0.mid").read_bytes()
    (tmp_path / "scores" / "cut.mid").write_bytes(whole[:50])
    settings = TokenizeSettings(output=str(tmp_path / "corpus"), input=(str(tmp_path / "scores"),), kind="midi")
    with open_run(OFF, name="test", kind="tokenize", output=tmp_path / "corpus") as run:
        made = tokenizing.perform(settings, tokenizing.resolve(settings), cluster, run)
    assert (made.num_documents, made.num_rejected) == (6, 1)
    [reject] = [json.loads(line) for path in tmp_path.glob("corpus/rejects/*") for line in path.open()]
    assert reject["file"] == "cut.mid"
    assert "damaged file" in reject["reason"]

    tokenizer = load_tokenizer("music")
    shape = ModelShape(1, 2, 32, num_positions=128, vocabulary_size=tokenizer.vocabulary_size)
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(0).named_parameters()}
    described = {"name": "music", "digest": tokenizer.digest, "vocabulary_size": 389, "end_of_text": 388}
    checkpoint.write(tmp_path / "model", Description(step=1, tokens=1, shape=shape, tokenizer=described), weights, {})
    (tmp_path / "openings.txt").write_text("v16 on60\nv20 on64 t50\n")
    generation = GenerateSettings(
        checkpoint=str(tmp_path / "model"),
        prompts=(str(tmp_path / "openings.txt"),),
        output=str(tmp_path / "generated"),
        sampling=SamplingSettings(max_tokens=60, num_samples=2, top_k=None),
        engine=EngineSettings(num_slots=4, precision="fp32", device="cpu"),
    )
    with open_run(OFF, name="test", kind="generate", output=tmp_path / "generated") as run:
        generating.perform(generation, generating.resolve(generation), cluster, run)
    rows = [json.loads(line) for path in tmp_path.glob("generated/rows/*.jsonl") for line in path.open()]
    files = sorted(tmp_path.glob("generated/midi/*.mid"))
    assert [path.name for path in files] == ["000000.mid", "000001.mid", "000002.mid", "000003.mid"]
    for row, path in zip(rows, files, strict=True):
        said = notes_of(tokenizer.encode(f"{row['prompt']} {row['text']}").tolist())
        assert read_midi(path.read_bytes()) == said
    assert (tmp_path / "generated" / "piano_roll.png").read_bytes().startswith(b"\x89PNG")
