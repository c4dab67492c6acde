"""Code's pack: the prompts, and gold and wrong programs of HumanEval's file in the sandbox."""

from pathlib import Path

import pytest
from datasets import Dataset

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.sandbox import local
from correction_trl.tasks import code_generation


FILE = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
PROBLEMS = {isolation: local.try_isolation(isolation) for isolation in ("namespaces", "bubblewrap")}
needs_sandbox = pytest.mark.skipif(all(PROBLEMS.values()), reason=f"no isolation here: {PROBLEMS}")
MBPP = {"task_id": 1, "test_list": ["assert double(2) == 4", "assert double(3) == 6"]}


@needs_sandbox
@pytest.mark.skipif(not FILE.exists(), reason="the HumanEval file is not on this machine")
def test_humaneval_s_programs_pass_and_those_of_others_do_not():
    published = load_split(str(FILE), None, "test")
    rows = code_generation.problems(published)
    assert len(rows) == 164 and published["prompt"][0] in rows[0]["prompt"][0]["content"]
    few = list(range(0, 164, 16))  # all 164 pass, and none of the shifted ones
    programs = [published[i]["prompt"] + published[i]["canonical_solution"] for i in few]
    columns = {name: rows.select(few)[name] for name in ("code_prompt", "test", "entry_point")}
    assert code_generation.passes(completions=programs, **columns) == [1.0] * 11
    assert sum(code_generation.passes(completions=programs[1:] + programs[:1], **columns)) == 0.0


@needs_sandbox
def test_both_forms_of_mbpp_are_judged_by_the_same_function():
    whole = {"text": "Double it.", "code": "", "test_setup_code": "import math", "challenge_test_list": [], **MBPP}
    sanitized = {"prompt": "Double it.", "test_imports": ["import math"], **MBPP}
    rows = [code_generation.problems(Dataset.from_list([row]))[0] for row in (whole, sanitized)]
    assert rows[0] == rows[1] and rows[0]["test_imports"] == ["import math"]
    assert "Double it." in rows[0]["prompt"][0]["content"] and "assert double(2) == 4" in str(rows[0]["prompt"])
    columns = {name: [rows[0][name]] * 2 for name in ("test_list", "test_imports")}
    programs = ["def double(x):\n    return 2 * x", "def double(x):\n    return x + 2"]
    assert code_generation.passes(completions=programs, **columns) == [1.0, 0.0]
    assert "assert double(3) == 6" in code_generation.failure(completions=programs, **columns)[1]


def test_stored_attempts_stay_and_other_columns_are_a_sentence():
    row = {"prompt": "Double it.", "first_attempt": "def double(x): return x", **MBPP}
    assert code_generation.problems(Dataset.from_list([row]))[0]["first_attempt"] == row["first_attempt"]
    with pytest.raises(BadInput, match="no data of MBPP or HumanEval: the columns are question"):
        code_generation.problems(Dataset.from_dict({"question": ["1 + 1?"]}))
