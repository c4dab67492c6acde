"""A launched run that is told to end ends in order: one sentence, a checkpoint if that was wanted, no process left."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers import ROOT, TWO_PROCESSES

from correction_trl.checkpoints import whole_checkpoints


pytestmark = pytest.mark.slow
SINGLE = ROOT / "recipes" / "accelerate_configs" / "single_gpu.yaml"


def start(tmp_path, n_processes, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(n_processes), "--cpu"]
    if n_processes > 1:
        command = [*command[:-1], "--config_file", str(TWO_PROCESSES), "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / "correction_optimization.py"), "--output_dir", str(tmp_path / "run")]
    command += [
        "--max_steps",
        "100000",
        "--test_rows",
        "8",
        "--logging_steps",
        "1",
        "--per_device_train_batch_size",
        "2",
    ]
    command += ["--max_completion_length", "4", "--num_train_epochs", "1000", *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = open(tmp_path / "log", "w")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.time() + 240
    while "  loss " not in (tmp_path / "log").read_text():  # an update, in the plain format of a log file
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        assert time.time() < deadline, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.2)
    return process, psutil.Process(process.pid).children(recursive=True)


def end(process, children, how):
    how(process)
    process.wait(timeout=60)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "the launcher's processes outlived it"


HOW = {
    "SIGTERM": lambda process: process.terminate(),
    "SIGKILL of the launcher": lambda process: process.kill(),
    "Ctrl-C": lambda process: os.killpg(process.pid, signal.SIGINT),
}


@pytest.mark.parametrize(("n_processes", "how"), [(1, "SIGTERM"), (1, "SIGKILL of the launcher"), (2, "SIGTERM")])
def test_nothing_is_left_and_one_sentence_says_it(tmp_path, n_processes, how):
    process, children = start(tmp_path, n_processes)
    assert children
    end(process, children, HOW[how])
    log = (tmp_path / "log").read_text()
    assert len(re.findall("Interrupted. What was saved stays", log)) == 1, log[-3000:]


@pytest.mark.parametrize(("n_processes", "how"), [(1, "SIGTERM"), (1, "Ctrl-C"), (2, "SIGTERM"), (2, "Ctrl-C")])
def test_a_checkpoint_is_saved_where_that_was_asked_for(tmp_path, n_processes, how):
    process, children = start(tmp_path, n_processes, "--save_on_signal", "true")
    end(process, children, HOW[how])
    log = (tmp_path / "log").read_text()
    assert log.count("a checkpoint is saved after this update") == 1, log[-3000:]
    assert log.count("Interrupted. What was saved stays") == 1, log[-3000:]
    assert len(whole_checkpoints(tmp_path / "run")) == 1
