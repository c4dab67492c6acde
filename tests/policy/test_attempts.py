"""Attempts in several turns: the ids between them, and that continuing from the cache is starting again."""

import functools

import pytest
import torch
from helpers import build_model, build_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from correction_trl.errors import BadInput
from correction_trl.policy.attempts import FollowUp, FollowUps
from correction_trl.policy.generation import Sampler
from correction_trl.policy.tokenization import tokenize_prompt


MESSAGE = "look again."


@pytest.fixture
def tokenizer():
    return build_tokenizer()


def make_follow_up(tokenizer, conversational=True):
    return FollowUp(tokenizer, [tokenizer.eos_token_id], conversational)


@pytest.mark.parametrize("text", ["12", "", "a = b"])
def test_appended_ids_are_those_of_the_rendered_conversation(tokenizer, text):
    """For a template that changes nothing, ids appended turn by turn are the ids of the whole conversation."""
    follow_up = make_follow_up(tokenizer)
    prompt = [{"role": "user", "content": "what is 5+7?"}]
    prompt_ids = tokenize_prompt(tokenizer, prompt)[1]
    attempt_ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    conversation = [*prompt, {"role": "assistant", "content": text}, {"role": "user", "content": MESSAGE}]
    expected = tokenize_prompt(tokenizer, conversation)[1]
    assert prompt_ids + attempt_ids + follow_up(attempt_ids, MESSAGE) == expected
    # An attempt that was cut off gets its end from the template
    assert prompt_ids + attempt_ids[:-1] + follow_up(attempt_ids[:-1], MESSAGE) == expected


def test_white_space_that_a_template_puts_before_the_end_is_left_out(tokenizer):
    ids = tokenizer("12", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    expected = make_follow_up(tokenizer)(ids, MESSAGE)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message.content }}{{ eos_token }}", "{{ message.content }}{{ ' ' }}{{ eos_token }}"
    )
    # the user's message has the white space too, which stays
    assert make_follow_up(tokenizer)(ids, MESSAGE) == [
        *expected[:-2], tokenizer.convert_tokens_to_ids(" "), *expected[-2:]
    ]  # fmt: skip


def test_plain_text_goes_between_blank_lines(tokenizer):
    follow_up = make_follow_up(tokenizer, conversational=False)
    ids = follow_up([10, tokenizer.eos_token_id], MESSAGE)
    assert ids == tokenizer(f"\n\n{MESSAGE}\n\n", add_special_tokens=False)["input_ids"]
    assert follow_up([10], MESSAGE) == ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages if m.role == 'user' %}<user>{{ m.content }}{% endfor %}", "exactly once"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "exactly once"),
        ("{% for m in messages %}{{ m.content[:5] if loop.last else m.content }}{% endfor %}", "changes the message"),
        ("{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", "one turn only"),
    ],
)
def test_templates_that_cannot_be_continued_are_refused_by_name(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match=message):
        make_follow_up(tokenizer)([10], MESSAGE)


def test_a_template_that_drops_earlier_reasoning_is_said_and_the_ids_keep_it(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message.content }}",
        "message.content.split('</think>')[-1].lstrip() if message.role == 'assistant' else message.content }}",
    )
    with pytest.warns(UserWarning, match="removes the reasoning"):
        follow_up = make_follow_up(tokenizer)
    attempt_ids = [*tokenizer("<think>a</think>12", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(follow_up(attempt_ids, MESSAGE)) == f"<user>{MESSAGE}<eos><assistant>"


def test_an_empty_message_is_refused(tokenizer):
    with pytest.raises(BadInput, match="empty"):
        make_follow_up(tokenizer)([10], " ")


def make_mistral(tokenizer, sliding_window):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=sliding_window,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("family", ["llama", "mistral", "mistral with a sliding window"])
def test_continuing_from_the_cache_is_starting_again(tokenizer, family, monkeypatch):
    """Greedy attempts in a padded batch equal those of each prompt alone, computed from the ids of all before it."""
    model = build_model(tokenizer).eval()
    if family != "llama":
        model = make_mistral(tokenizer, 8 if "window" in family else None)
    follow_up = make_follow_up(tokenizer)
    prompts = ["1+1=", "what is 25+17? ", "5", "add 1, 2 and 3, please"]
    prompt_ids = [tokenize_prompt(tokenizer, [{"role": "user", "content": text}])[1] for text in prompts]
    sampler = Sampler(model, tokenizer, max_new_tokens=12, temperature=0)

    def next_turn(turn, attempts):
        return [follow_up(ids, f"{MESSAGE} {turn}") for ids in attempts]

    n_forwards = []
    forward = model.forward

    @functools.wraps(forward)  # `generate` looks at its signature
    def counting_forward(*args, **kwargs):
        n_forwards.append(kwargs["input_ids"].size(1))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting_forward)
    turns, follow_ups = sampler.attempts(prompt_ids, next_turn, 3)
    attempts = [responses.ids for responses in turns]
    longest = max(n_forwards)
    for i, prompt in enumerate(prompt_ids):
        row = list(prompt)
        for turn in range(3):
            ids = torch.tensor([row])
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=sampler.config)
            output = output[0, len(row) :].tolist()
            assert attempts[turn][i] == output
            row += output
            if turn < 2:
                assert follow_ups[turn][i] == follow_up(output, f"{MESSAGE} {turn + 1}")
                row += follow_ups[turn][i]
    # With a cache no forward is longer than the first prompt; without, later ones hold the whole conversation
    whole = max(len(ids) for ids in prompt_ids)
    assert (longest > whole) == (family == "mistral with a sliding window")
    assert len({len(ids) for turn in attempts for ids in turn}) > 1  # rows ended at different places


def test_one_attempt_needs_no_follow_up(tokenizer):
    sampler = Sampler(build_model(tokenizer).eval(), tokenizer, max_new_tokens=4, temperature=0)
    (responses,), follow_ups = sampler.attempts([[1, 10, 11]])
    assert follow_ups == [] and responses.ids == sampler([[1, 10, 11]]).ids


def test_a_model_that_was_saved_without_a_cache_has_one_here(tokenizer):
    """Training with gradient checkpointing writes `use_cache: false` into a model's config."""
    prompt_ids = [tokenize_prompt(tokenizer, [{"role": "user", "content": text}])[1] for text in ("1+1=", "5")]
    follow_up = make_follow_up(tokenizer)
    attempts = []
    for use_cache in (True, False):
        model = build_model(tokenizer, use_cache=use_cache).eval()
        sampler = Sampler(model, tokenizer, max_new_tokens=6, temperature=0)
        turns, _ = sampler.attempts(prompt_ids, lambda turn, attempts: [follow_up(a, MESSAGE) for a in attempts], 2)
        attempts.append([turn.ids for turn in turns])
    assert attempts[0] == attempts[1]


def test_one_follow_up_serves_all_rows_with_the_same_arguments_of_the_template(tokenizer):
    follow_ups = FollowUps(tokenizer, [tokenizer.eos_token_id])
    chat = [{"role": "user", "content": "1+1="}]
    thinking = follow_ups.of(chat, {"a": 1, "enable_thinking": True})
    assert follow_ups.of(chat * 3, {"enable_thinking": True, "a": 1}) is thinking
    assert follow_ups.of(chat, {"enable_thinking": False, "a": 1}) is not thinking
    plain = follow_ups.of("1+1=", {})
    assert plain is follow_ups.of("2", {}) is not follow_ups.of(chat, {})
    assert plain([10], MESSAGE) == make_follow_up(tokenizer, conversational=False)([10], MESSAGE)
