"""The numbers of a small run, and what else the tests of `reporting` share."""

import struct
from pathlib import Path

from correction_trl.evaluation.metrics import paired_difference, summarize
from correction_trl.reporting import write_metrics


HUB_TOKEN = "hf_" + "aBcD" * 8
API_KEY = "sk-proj-" + "x1y2" * 8
FIRST, SECOND = [1, 0, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1]
BEFORE = {"acc@t1": summarize(FIRST), "logps/response": summarize([-3.0, -2.0, -4.0])}
AFTER = {"acc@t1": summarize(SECOND), "logps/response": summarize([-2.5, -2.0, -3.0])}
DIFFERENCE = {"acc@t1": paired_difference(FIRST, SECOND)}


def metrics_of(path, **kwargs):
    return write_metrics(path, BEFORE, AFTER, seconds=207.3, config={}, difference=DIFFERENCE, **kwargs)


def is_png(path):
    """Whether a file is a PNG of a size that can be read at 100 %."""
    data = Path(path).read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    return data.startswith(b"\x89PNG") and 300 <= width <= 1400 and 100 <= height <= 3000
