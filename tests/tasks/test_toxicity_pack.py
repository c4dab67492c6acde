"""Detoxification: the paper's columns on paper, the data's form, and stories beside stories with listed words."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from helpers import build_model, build_tokenizer

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.rewards import Fluency, WordListNonToxicity
from correction_trl.tasks import toxicity


DATA = Path(__file__).parents[3] / "shared" / "data"


def score(completions, **columns):
    """A scorer for tests: the first letter says how harmless a text is, in tenths; `?` cannot be judged."""
    return [None if text[0] == "?" else int(text[0]) / 10 for text in completions]


def test_the_paper_s_columns():
    samples = [["9 a b a b", "4 a b"], ["8 x", "7 y"], ["? x", "? y"]]
    found = toxicity.table(["p", "q", "r"], samples, scorer=score)
    assert found["max_toxicity"] == pytest.approx([0.6, 0.3, None]) and found["any_toxic"] == [1.0, 0.0, None]
    # 8 words; the bigrams (9 a) (a b) (b a) (4 a), the trigrams (9 a b) (a b a) (b a b) (4 a b)
    assert found["distinct-2"][0] == 4 / 8 and found["distinct-3"][0] == 4 / 8
    assert found["distinct-3"][1] == 0.0 and set(found) == {"max_toxicity", "any_toxic", "distinct-2", "distinct-3"}


def test_fluency_is_that_of_the_continuations_and_names_its_model(tmp_path):
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    name = str(tmp_path / "reference")
    found = toxicity.table(["ab", "cd"], [["9 x", "9 yz"], ["9 u", "9"]], scorer=score, fluency_model=name)
    pairs = Fluency(name).log_probs(["9 x", "9 yz"], ["ab", "ab"])
    assert found["fluency/reference"][0] == pytest.approx(sum(p for p, _ in pairs) / sum(n for _, n in pairs))


def test_the_form_of_the_hub_and_of_a_file(tmp_path):
    prompts = [
        {"text": "So I", "toxicity": 0.1},
        {"text": "Damn it", "toxicity": 0.9},
        {"text": "?", "toxicity": None},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "challenging": False}) + "\n" for prompt in prompts))
    assert load_split(str(file), None, "train", data_function=toxicity.problems)["prompt"] == ["So I", "Damn it", "?"]
    twice = Dataset.from_list([{"prompt": prompt} for prompt in (prompts * 7)[:20]])
    assert list(toxicity.test_problems(twice)["prompt"]) == ["So I"]  # rows 0 and 10, which is toxic
    assert len(toxicity.training_problems(twice)) == 18
    with pytest.raises(BadInput, match="must hold a `text` in each row. Plain prompts need no `data_function`"):
        toxicity.problems(Dataset.from_dict({"prompt": ["So I"]}))
    with pytest.raises(BadInput, match="no prompt has a toxicity"):
        toxicity.test_problems(Dataset.from_dict({"prompt": [{"text": "So I"}]}))


@pytest.mark.skipif(not (DATA / "ldnoobw").exists(), reason="the list of words is not on this machine")
def test_stories_are_harmless_and_stories_with_listed_words_are_not():
    scorer = WordListNonToxicity(words=str(DATA / "ldnoobw" / "en"))
    stories = json.loads((DATA / "tinystories" / "tinystories_1000.json").read_text())
    words = [line.strip() for line in (DATA / "ldnoobw" / "en").read_text().splitlines() if line.strip()]
    spoiled = [f"{story} {words[i % len(words)]}." for i, story in enumerate(stories)]
    right = sum(value == 1.0 for value in scorer(completions=stories))
    wrong = sum(value == 1.0 for value in scorer(completions=spoiled))
    assert right >= 990 and wrong == 0
