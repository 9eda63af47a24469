"""What a model in training writes: some prompts gone on with every so many steps, for people to read.

Drawn from the 40 likeliest tokens by a generator of its own, keyed by seed, step and prompt, so that training draws
what it would have drawn and a repeated step writes the same texts.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt_core.tokens.tokenizer import Tokenizer
from gpt_core.training.step import dropout_key

SAMPLE_TOKENS = 64
TOP_K = 40
NextLogits = Callable[[np.ndarray], Tensor]


class Samples:
    """Prompts, and how they are gone on with.

    Args:
        tokenizer: Of the corpus.
        prompts: Texts to go on with; an empty one begins a document.
        seed: Of the run.

    Raises:
        SettingsError: If a prompt is no text of the corpus's kind: music is written as the names of events.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[str], seed: int) -> None:
        self._tokenizer = tokenizer
        self._prompts = [(prompt, tokenizer.encode_prompt(prompt).tolist()) for prompt in prompts]
        self._seed = seed

    def take(self, step: int, next_logits: NextLogits) -> list[tuple[str, str]]:
        """Return each prompt with its continuation, of 64 tokens or up to the end of its document.

        Args:
            step: The step just trained.
            next_logits: Returns the logits [V] of the token after some ids.
        """
        return [
            (prompt, self._continuation(prompt_ids, dropout_key(self._seed, step, index), next_logits))
            for index, (prompt, prompt_ids) in enumerate(self._prompts)
        ]

    def _continuation(self, prompt_ids: list[int], key: int, next_logits: NextLogits) -> str:
        generator = torch.Generator().manual_seed(key)
        end = self._tokenizer.end_of_text
        ids = [end, *prompt_ids]
        start = len(ids)
        while len(ids) < start + SAMPLE_TOKENS:
            logits_V = next_logits(np.array(ids)).float().cpu()[: self._tokenizer.vocabulary_size]
            top, places = logits_V.topk(min(TOP_K, len(logits_V)))
            token = int(places[torch.multinomial(top.softmax(0), 1, generator=generator)])
            if token == end:
                break
            ids.append(token)
        return self._tokenizer.decode(ids[start:])
