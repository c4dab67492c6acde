"""Completions given as text: what the policy would have written, its thoughts and the end of its turn included."""

from pathlib import Path

import pytest
import trl
from datasets import Dataset
from helpers import CHAT_TEMPLATE, build_model, build_tokenizer, make_args
from transformers import AutoTokenizer, GenerationConfig

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.correction_optimization.stored_pairs import tokenize_pair
from correction_trl.errors import BadInput
from correction_trl.policy.attempts import FollowUp
from correction_trl.policy.completions import CompletionEncoder, MissingThoughts, opened_thoughts
from correction_trl.policy.tokenization import stop_token_ids, tokenize_prompt


TEMPLATES = sorted(
    path for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja") if "training" not in path.stem
)
PHI_3 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "phi-3-mini"
PROMPT = [{"role": "user", "content": "what is 1+1?"}]
# The tokens of the templates' turns, and at which of them a model of the family stops
MARKUP = [
    "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<end_of_turn>", "<start_of_turn>",
    "<turn|>", "<|turn>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot|>", "<|return|>",
    "<|start|>", "<|channel|>", "<|message|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>",
    "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<end_of_utterance>",
    "<|observation|>", "<｜end▁of▁sentence｜>",
]  # fmt: skip
STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "diffusion": "<turn|>",
    "gemma4": "<turn|>", "gemma": "<end_of_turn>", "glm4moe": "<|user|>", "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "llama": "<|eot_id|>", "llava": "<eos>",
    "muse": "<|eot|>", "phi": "<|end|>",
}  # fmt: skip


def with_template(path):
    """The tiny tokenizer with a family's markup, and the family's stop tokens, its end-of-sequence token first."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([*"<>\n()|/_ABCDEFGHIJKLMNOPQRSTUVWXYZ:-!'\"[]{};#*&%$"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": MARKUP})
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    stop = next((token for name, token in STOPS.items() if path.stem.startswith(name)), "<|im_end|>")
    return tokenizer, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
class TestTemplatesOfTRL:
    def test_a_correction_is_the_text_given_and_ends_where_the_policy_stops(self, path):
        tokenizer, stop_ids = with_template(path)
        prompt = PROMPT
        text, prompt_ids = tokenize_prompt(tokenizer, prompt)
        encode = CompletionEncoder(tokenizer, stop_ids)
        thinks = opened_thoughts(text) is not None
        given = "so it is\n</think>\n\nit is 2." if thinks else "it is 2."
        ids = encode(prompt, text, prompt_ids, given)
        decoded = tokenizer.decode(ids)
        assert given in decoded
        assert ids[-1] == stop_ids[1]
        # One end of the turn, and nothing of another turn
        assert sum(token in stop_ids for token in ids) == 1
        assert decoded.count("think>") == thinks
        if thinks:  # the same answer, the block opened once more: the prompt has opened it
            assert encode(prompt, text, prompt_ids, f"<think>\n{given}") == ids
            with pytest.raises(MissingThoughts, match="`missing_thoughts: empty`"):
                encode(prompt, text, prompt_ids, "it is 2.")
            own = encode(prompt, text, prompt_ids, "one and one\n</think>\n\nit is 3.")
            completed = tokenizer.decode(encode(prompt, text, prompt_ids, "it is 2.", own_ids=own))
            assert completed.startswith("one and one\n</think>\n\nit is 2.")
            closed = CompletionEncoder(tokenizer, stop_ids, "empty")(prompt, text, prompt_ids, "it is 2.")
            assert tokenizer.decode(prompt_ids + closed).count("</think>") == 1

    def test_stored_and_on_policy_give_the_same_ids(self, path):
        tokenizer, stop_ids = with_template(path)
        prompt = PROMPT
        text, prompt_ids = tokenize_prompt(tokenizer, prompt)
        encode = CompletionEncoder(tokenizer, stop_ids)
        thoughts = "well\n</think>\n\n" if opened_thoughts(text) else ""
        y, corrected = f"{thoughts}it is 3.", f"{thoughts}it is 2."
        response_ids = encode(prompt, text, prompt_ids, y)
        on_policy, kept = encode.corrections([prompt], [(text, prompt_ids)], [{}], [response_ids], [y], [corrected])
        row = {
            "prompt": prompt,
            "rejected": [{"role": "assistant", "content": y, "tool_calls": None}],
            "chosen": [{"role": "assistant", "content": corrected}],
        }
        assert tokenize_pair(row, 0, encode, "train") == {
            "prompt_ids": prompt_ids,
            "rejected_ids": response_ids,
            "chosen_ids": on_policy[0],
        }
        assert kept[0].endswith(corrected)  # decoded, a channel leaves its name

    def test_a_follow_up_ends_the_turn_once(self, path):
        tokenizer, stop_ids = with_template(path)
        prompt = PROMPT
        text, prompt_ids = tokenize_prompt(tokenizer, prompt)
        attempt = CompletionEncoder(tokenizer, stop_ids, "empty")(prompt, text, prompt_ids, "it is 3.")
        follow_up = FollowUp(tokenizer, stop_ids, True)
        whole = tokenizer.decode(attempt + follow_up(attempt, "look again."))
        cut_off = tokenizer.decode(attempt[:-1] + follow_up(attempt[:-1], "look again."))
        assert "it is 3." in whole and "look again." in whole
        end = tokenizer.decode(stop_ids[1:])
        between = whole[whole.index("it is 3.") + len("it is 3.") : whole.index("look again.")]
        assert between.count(end) == 1, between
        assert "look again." in cut_off


# ---------------------------------------------------------------- thoughts


def test_a_policy_that_thinks_unasked_keeps_its_thoughts():
    """Qwen3: the template opens no block, the policy does."""
    tokenizer, stop_ids = with_template(next(path for path in TEMPLATES if path.stem == "qwen3"))
    prompt = [{"role": "user", "content": "what is 1+1?"}]
    text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    encode = CompletionEncoder(tokenizer, stop_ids)
    own = encode(prompt, text, prompt_ids, "<think>\nhm\n</think>\n\nit is 3.")
    corrected = encode(prompt, text, prompt_ids, "it is 2.", own_ids=own)
    assert tokenizer.decode(corrected) == "<think>\nhm\n</think>\n\nit is 2.<|im_end|>"
    assert tokenizer.decode(encode(prompt, text, prompt_ids, "it is 2.")) == "it is 2.<|im_end|>"  # no empty block


def test_an_answer_that_was_right_is_unchanged_though_it_comes_without_thoughts():
    tokenizer, stop_ids = with_template(next(path for path in TEMPLATES if path.stem == "qwen3_6"))
    prompt = [{"role": "user", "content": "what is 1+1?"}]
    rendered = tokenize_prompt(tokenizer, prompt)
    encode = CompletionEncoder(tokenizer, stop_ids)
    responses = ["hm\n</think>\n\nit is 2.", "hm\n</think>\n\nit is 3.", "hm, it is"]
    ids = [encode(prompt, *rendered, text) for text in responses[:2]] + [
        tokenizer("hm", add_special_tokens=False)["input_ids"]
    ]
    with pytest.warns(UserWarning, match="A correction without thoughts is left out"):
        corrected, kept = encode.corrections([prompt] * 3, [rendered] * 3, [{}] * 3, ids, responses, ["it is 2."] * 3)
    assert corrected == [ids[0], ids[0], ids[2]]
    assert kept == [responses[0], responses[0], None]


def test_channels_before_an_answer():
    tokenizer, stop_ids = with_template(next(path for path in TEMPLATES if path.stem == "gptoss"))
    prompt = [{"role": "user", "content": "what is 1+1?"}]
    text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    encode = CompletionEncoder(tokenizer, stop_ids)
    final = "<|channel|>final<|message|>it is 2.<|return|>"
    assert tokenizer.decode(encode(prompt, text, prompt_ids, "it is 2.")) == final
    analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    own = tokenizer(analysis + final.replace("2", "3"), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encode(prompt, text, prompt_ids, "it is 2.", own_ids=own)) == analysis + final


def test_the_trainer_says_which_row_has_no_thoughts(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>", "\n"])
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")
    rows = [
        {"prompt": [{"role": "user", "content": "1+1="}], "response": response, "correction": "it is 2."}
        for response in ("hm\n</think>\n\nit is 3.", "it is 3.")
    ]

    def trainer(rows, **settings):
        args = CorrectionOptimizationConfig(**make_args(tmp_path, **settings))
        model = build_model(tokenizer)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        return CorrectionOptimizationTrainer(
            model,
            args,
            train_dataset=Dataset.from_list(rows),
            ref_model=build_model(tokenizer),
            processing_class=tokenizer,
        )

    with pytest.raises(BadInput, match="Row 1 of the train dataset, response: .*begins every reply with `<think>`"):
        trainer(rows)
    with pytest.raises(BadInput, match="Row 0 of the train dataset, correction: .*`missing_thoughts: own`"):
        trainer(rows, missing_thoughts="refuse")
    row = trainer(rows[:1]).train_dataset[0]
    assert tokenizer.decode(row["chosen_ids"]) == "hm\n</think>\n\nit is 2.<eos>"
    row = trainer(rows, missing_thoughts="empty").train_dataset[1]
    assert tokenizer.decode(row["rejected_ids"]).endswith("</think>\n\nit is 3.<eos>")


# ---------------------------------------------------------------- control tokens, borders


def test_control_tokens_in_a_text_are_text():
    tokenizer, stop_ids = with_template(next(path for path in TEMPLATES if path.stem == "qwen2_5"))
    prompt = [{"role": "user", "content": "capital of spain?"}]
    text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    encode = CompletionEncoder(tokenizer, stop_ids)
    ids = encode(prompt, text, prompt_ids, "madrid<|im_end|>\n<|im_start|>user\nmore")
    assert tokenizer.decode(ids) == "madrid<|im_end|>\n<|im_start|>user\nmore<|im_end|>"
    assert [token in stop_ids for token in ids].count(True) == 1
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in ids
    assert encode(prompt, text, prompt_ids, "madrid<|im_end|>") == encode(prompt, text, prompt_ids, "madrid")


def test_a_turn_that_the_next_users_token_ends():
    """GLM-4: only the same token is dropped from the follow-up."""
    tokenizer, stop_ids = with_template(next(path for path in TEMPLATES if path.stem == "glm4moe"))
    eos, user = stop_ids
    follow_up = FollowUp(tokenizer, stop_ids, True)
    after_user, after_eos = follow_up([7, user], "again"), follow_up([7, eos], "again")
    assert after_eos == [user, *after_user] and user not in after_user[:1]


@pytest.mark.parametrize("prompt", ["<bos>what is 1+1? ", "what is 1+1? "])
def test_a_plain_prompt_has_one_beginning_of_sequence(tiny_tokenizer, prompt):
    text, ids = tokenize_prompt(tiny_tokenizer, prompt)
    assert ids.count(tiny_tokenizer.bos_token_id) == 1 and ids[0] == tiny_tokenizer.bos_token_id
    encode = CompletionEncoder(tiny_tokenizer, [tiny_tokenizer.eos_token_id])
    assert tiny_tokenizer.bos_token_id not in encode(prompt, text, ids, "it is 2.")


@pytest.mark.skipif(not PHI_3.is_dir(), reason=f"the tokenizer is not at {PHI_3}")
@pytest.mark.parametrize("prompt", ["What is 1+1? ", "What is 1+1?", "Q:\n", "What is 1+1?  "])
@pytest.mark.parametrize("answer", ["It is 2.", " It is 2.", "\nIt is 2.", "2"])
def test_sentence_pieces_add_no_space(prompt, answer):
    tokenizer = AutoTokenizer.from_pretrained(PHI_3)
    text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    stop_ids = stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[32000]))
    ids = CompletionEncoder(tokenizer, stop_ids)(prompt, text, prompt_ids, answer)
    assert tokenizer.decode(prompt_ids + ids[:-1], skip_special_tokens=True) == prompt + answer
