"""Fluency, beside a loop over single texts and tokens; and of real stories beside shuffled ones."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers import build_model, build_tokenizer

from correction_trl.errors import BadInput
from correction_trl.rewards import Fluency


DATA = Path(__file__).parents[3] / "shared" / "data"
TEXTS = ["ab", "", "a longer text, 12 + 3", "b", "what?"]
PROMPTS = ["once", "upon a", "time", "", "there was"]


@pytest.fixture(scope="module")
def tiny():
    tokenizer = build_tokenizer()
    return build_model(tokenizer).eval(), tokenizer


def naive(model, tokenizer, text, context=""):
    """Token by token, each from a forward of its own."""
    ids = [tokenizer.bos_token_id, *tokenizer(context, add_special_tokens=False)["input_ids"]]
    total, n = 0.0, 0
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids, n = [*ids, token], n + 1
    return total, n


@pytest.mark.parametrize("given_prompt", [False, True])
def test_it_equals_a_loop(tiny, given_prompt):
    values = Fluency(*tiny, given_prompt=given_prompt, batch_size=2)(completions=TEXTS, prompts=PROMPTS)
    for value, text, prompt in zip(values, TEXTS, PROMPTS, strict=True):
        total, n = naive(*tiny, text, prompt if given_prompt else "")
        assert value == (pytest.approx(total / n, abs=1e-5) if n else None)


def test_a_long_text_is_read_to_its_limit_and_of_a_long_prompt_the_end(tiny):
    fluency = Fluency(*tiny, max_length=6)
    assert fluency.log_probs(["abcdefgh"])[0] == (pytest.approx(naive(*tiny, "abcde")[0], abs=1e-5), 5)
    assert fluency.log_probs(["ab"], ["uvwxyz"])[0] == (pytest.approx(naive(*tiny, "ab", "xyz")[0], abs=1e-5), 2)


def test_messages_are_texts_and_the_value_has_a_name(tiny, tmp_path):
    completions = [[{"role": "assistant", "content": "ab"}]]
    prompts = [[{"role": "user", "content": "once"}]]
    value = Fluency(*tiny, given_prompt=True)(completions=completions, prompts=prompts)
    assert value == Fluency(*tiny, given_prompt=True)(completions=["ab"], prompts=["once"])
    folder = tmp_path / "reference"
    tiny[0].save_pretrained(folder)
    tiny[1].save_pretrained(folder)
    named = Fluency(str(folder))
    assert named.name == "reference" and named(completions=["ab"]) == pytest.approx(Fluency(*tiny)(completions=["ab"]))


def test_what_cannot_be_loaded_is_a_sentence(tiny, tmp_path):
    with pytest.raises(BadInput, match="reference language model .*nothing.* cannot be loaded"):
        Fluency(str(tmp_path / "nothing"))(completions=["ab"])
    with pytest.raises(BadInput, match="without its tokenizer"):
        Fluency(tiny[0])(completions=["ab"])
    with pytest.raises(ValueError, match="5 completions but 0 values in column 'prompts'"):
        Fluency(*tiny, given_prompt=True)(completions=TEXTS)


@pytest.mark.skipif(not (DATA / "stories260K-hf").exists(), reason="the story model is not on this machine")
def test_stories_are_more_fluent_than_the_same_words_in_another_order():
    stories = [
        " ".join(story.split()[:30])
        for story in json.loads((DATA / "tinystories/tinystories_1000.json").read_text())[:20]
    ]
    shuffled = [" ".join(random.Random(0).sample(words := story.split(), len(words))) for story in stories]
    fluency = Fluency(str(DATA / "stories260K-hf"))
    pairs = zip(fluency(completions=stories), fluency(completions=shuffled), strict=True)
    assert all(story > other + 1 for story, other in pairs)
