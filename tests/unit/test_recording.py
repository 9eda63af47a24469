"""Promises of gpt_core.inspection.recording: what lies in the page is what a service would answer."""

import json
from base64 import b64decode

import numpy as np
import torch

from gpt_core.inspection.inspection import Inspector, Query
from gpt_core.inspection.recording import record
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer

SHAPE = ModelShape(2, 2, 16, num_positions=40, vocabulary_size=257, attention_band=4)
IDS = tuple(b"what lies in the page")


def unpacked(text, kind):
    return np.frombuffer(b64decode(text), kind)


def test_a_recording_holds_every_number_a_service_would_send():
    torch.set_num_threads(1)
    weights = {name: tensor.detach() * 3 for name, tensor in GPT(SHAPE).initialise(0).named_parameters()}
    inspector = Inspector(weights, SHAPE, load_tokenizer("bytes"))
    recorded = json.loads(json.dumps(record(inspector, IDS, 7)))
    for layer, head in ((0, 1), (1, 0)):
        asked = inspector.inspect(Query(IDS, ("attention", "step"), 7, layer, head))
        kept = recorded["layers"][layer]
        rows = unpacked(kept["attention"], "<u2").reshape(2, -1)[head] / 65535
        np.testing.assert_allclose(rows, np.concatenate(asked["attention"]), rtol=0, atol=0.5 / 65535 + 1e-7)
        for name in kept["vectors"]:
            np.testing.assert_array_equal(unpacked(kept["vectors"][name], "<f4"), asked["step"][name])
        for name in kept["heads"]:
            own = unpacked(kept["heads"][name], "<f4").reshape(2, -1)[head]
            np.testing.assert_allclose(own, asked["step"][name], rtol=0, atol=1e-6)
        first, last = kept["sees"]
        assert [first <= place <= last for place in range(len(IDS))] == [s is not None for s in asked["step"]["masked"]]
        missing = set(asked["step"]) - set(kept["vectors"]) - set(kept["heads"])
        assert missing == {"token", "position", "masked"}
        np.testing.assert_array_equal(unpacked(recorded["token"], "<f4"), asked["step"]["token"])
    assert recorded["answer"]["position"] == 7
    assert {"next", "heads", "lens", "anatomy"} <= set(recorded["answer"])
