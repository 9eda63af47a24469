"""A small training run and what it tells and saves, for the tests of training."""

import hashlib

from gpt_core.model.presets import ModelShape
from gpt_core.training import checkpoint
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan
from tests.unit import tiny_corpus

NUM_STEPS = 6


class Recorder(Silence):
    """Keeps what it is told; stops or dies when asked to."""

    def __init__(self, stop_after=None, die_after=None):
        self.metrics = {}
        self.checkpoints = []
        self.stop_after = stop_after
        self.die_after = die_after

    def on_metrics(self, step, tokens, metrics):
        self.metrics[step] = metrics
        if step == self.die_after:
            raise KeyboardInterrupt

    def on_checkpoint(self, path, step, metrics):
        self.checkpoints.append(step)

    def should_stop(self):
        return self.stop_after is not None and len(self.metrics) + 1 >= self.stop_after


def tiny_plan(corpus, output):
    """Return a plan with dropout, a schedule and evaluations; six steps take a tenth of a second."""
    return TrainingPlan(
        corpus=str(corpus),
        output=str(output),
        shape=ModelShape(2, 2, 16, 8, tiny_corpus.END_OF_TEXT + 1, dropout=0.1),
        num_steps=NUM_STEPS,
        window_tokens=8,
        batch_sequences=8,
        micro_batch_sequences=2,
        recipe=Recipe(learning_rate=1e-2, warmup_tokens=100, decay_tokens=NUM_STEPS * 64),
        seed=5,
        evaluate_every_steps=2,
        evaluate_sequences=5,
    )


def digest_of(run_folder):
    """SHA-256 over the last checkpoint's weights and both moments."""
    newest = checkpoint.load(run_folder)
    sha256 = hashlib.sha256()
    for tensors in (newest.weights, newest.load_optimizer()):
        for name in sorted(tensors):
            sha256.update(name.encode() + tensors[name].numpy().tobytes())
    return sha256.hexdigest()


def logged(recorder):
    names = ("loss", "smoothed_loss", "grad_norm", "learning_rate", "validation_loss")
    return {step: [metrics[name] for name in names if name in metrics] for step, metrics in recorder.metrics.items()}


def train_and_tell(ranks, plan, stop_after=None):
    """Run on a rank; return (what was logged, digest of what was saved)."""
    recorder = Recorder(stop_after)
    train(plan, ranks, recorder)
    return logged(recorder), digest_of(plan.output)
