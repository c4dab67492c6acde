"""What a person reads while a run trains, and that no other message is lost with the noise."""

import logging
import warnings

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from correction_trl.recipe import NOISE_LOGGED, silence_noise
from correction_trl.reporting import SCORE_NUMBERS, ReadableProgress, show_readable_progress


LOGS = {"loss": 1.25, "acc@t1": 0.5, "acc@t2": 0.75, "delta(i->c)": 0.25, "num_tokens": 10.0}


@pytest.fixture
def told(tmp_path, capsys):
    """Tells a callback of one run with one log; returns what it printed."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state, control = TrainerState(global_step=5, max_steps=60, is_world_process_zero=True), TrainerControl()

    def told(callback, logs):
        callback.on_train_begin(args, state, control)
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs=logs)
        callback.on_train_end(args, state, control)
        return capsys.readouterr().out

    return told


def test_a_file_gets_one_line_with_the_main_numbers(told):
    line = told(ReadableProgress(SCORE_NUMBERS), LOGS)  # pytest's stdout is no terminal
    assert line == "step 5/60  acc@t1 0.5  acc@t2 0.75  delta(i->c) 0.25\n"


def test_an_evaluation_is_named_as_one_and_a_log_of_other_keys_is_no_line(told):
    assert told(ReadableProgress(SCORE_NUMBERS), {"eval_acc@t1": 0.5}) == "step 5/60  evaluation: acc@t1 0.5\n"
    assert told(ReadableProgress(SCORE_NUMBERS), {"train_runtime": 3.0}) == ""


def test_rich_shows_the_main_numbers_and_no_others(told):
    shown = told(ReadableProgress(SCORE_NUMBERS, "rich"), LOGS | {"kl/t2": 0.125})
    assert "acc@t2" in shown and "0.750" in shown and "num_tokens" not in shown
    assert "kl t2" in shown and shown.count("Metric") == 1


def test_an_evaluation_outside_of_training_has_no_bar_to_move(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state = TrainerState(is_world_process_zero=True)
    ReadableProgress(SCORE_NUMBERS, "rich").on_prediction_step(args, state, TrainerControl(), eval_dataloader=[1, 2])


@pytest.mark.parametrize("own", [True, False])
def test_it_takes_the_place_of_the_printed_dicts_and_nothing_else_does(own):
    class Trainer:
        def __init__(self):
            mine = [ReadableProgress(SCORE_NUMBERS)] if own else []
            self.callback_handler = CallbackHandler([ProgressCallback, *mine], None, None, None, None)
            self.remove_callback = self.callback_handler.remove_callback

    trainer = Trainer()
    show_readable_progress(trainer)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert (ProgressCallback in kinds) is not own and (ReadableProgress in kinds) is own
    assert PrinterCallback not in kinds


def test_the_named_noise_is_silent_and_nothing_else(caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_noise()
        warnings.warn("`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
        warnings.warn("`learning_rate` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
    assert [str(w.message)[:15] for w in caught] == ["`learning_rate`"]
    logger = logging.getLogger(NOISE_LOGGED[0])
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "x")
    logger.warning("Another failure")
    assert [record.getMessage() for record in caplog.records] == ["Another failure"]
