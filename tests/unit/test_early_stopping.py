"""Promises of gpt_core.training.early_stopping."""

from gpt_core.training.early_stopping import after_evaluation, carried, is_best, is_out_of_patience


def test_patience_counts_evaluations_that_are_no_better_and_starts_again_at_a_better_one():
    metrics, waited = {}, []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.5):
        metrics = carried(metrics) | {"validation_loss": loss}
        metrics |= after_evaluation(metrics, loss)
        waited.append((metrics["best_validation_loss"], metrics["evaluations_since_best"], is_best(metrics)))
    assert waited == [(3, 0, True), (2, 0, True), (2, 1, False), (2, 2, False), (1, 0, True), (1, 1, False)]


def test_a_step_that_was_not_evaluated_is_not_the_best_and_keeps_the_count():
    metrics = {"loss": 1.0, "validation_loss": 2.0, "best_validation_loss": 2.0, "evaluations_since_best": 0.0}
    assert carried(metrics) == {"best_validation_loss": 2.0, "evaluations_since_best": 0.0}
    assert not is_best(carried(metrics))


def test_patience_ends_at_its_number_and_none_waits_for_ever():
    assert not is_out_of_patience({}, 1)
    assert not is_out_of_patience({"evaluations_since_best": 1.0}, 2)
    assert is_out_of_patience({"evaluations_since_best": 2.0}, 2)
    assert not is_out_of_patience({"evaluations_since_best": 9.0}, None)
