"""Prompts and completions as token ids: nothing lost, nothing doubled, one stop token at the end."""

import copy
from pathlib import Path

import pytest
from datasets import Dataset
from helpers import ALPHABET, CHAT_TEMPLATE, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from correction_trl.errors import BadInput
from correction_trl.policy.completions import CompletionEncoder
from correction_trl.policy.tokenization import (
    check_prompts,
    check_tokenizer,
    decode,
    stop_token_ids,
    tokenize_prompt,
)


PHI_3 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "phi-3-mini"
TEXTS = st.text(ALPHABET, min_size=1, max_size=12)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def encode(tokenizer, prompt, completion, generation_config=None) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its completion, as a trainer gets them."""
    stop_ids = stop_token_ids(tokenizer, generation_config or GenerationConfig())
    text, prompt_ids = tokenize_prompt(tokenizer, prompt)
    return prompt_ids, CompletionEncoder(tokenizer, stop_ids)(prompt, text, prompt_ids, completion)


# ---------------------------------------------------------------- the tiny tokenizer


@given(prompt=TEXTS, completion=TEXTS)
def test_plain_ids_are_those_of_the_whole_text_and_one_stop_token(tiny_tokenizer, prompt, completion):
    prompt_ids, completion_ids = encode(tiny_tokenizer, prompt, completion)
    assert prompt_ids + completion_ids == tiny_tokenizer(prompt + completion + "<eos>")["input_ids"]
    assert completion_ids.count(tiny_tokenizer.eos_token_id) == 1
    assert completion_ids[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.bos_token_id not in completion_ids


@given(prompt=TEXTS, completion=TEXTS)
def test_chat_ids_are_those_of_the_whole_conversation(tiny_tokenizer, prompt, completion):
    prompt_ids, completion_ids = encode(tiny_tokenizer, chat(prompt), completion)
    conversation = [*chat(prompt), {"role": "assistant", "content": completion}]
    whole = tiny_tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
    assert prompt_ids + completion_ids == whole
    assert prompt_ids.count(tiny_tokenizer.bos_token_id) == 1
    assert completion_ids.count(tiny_tokenizer.eos_token_id) == 1


def test_a_completion_that_already_ends_is_not_ended_twice(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    for prompt in ("a", chat("a")):
        assert encode(tiny_tokenizer, prompt, "bc<eos>")[1] == [*encode(tiny_tokenizer, prompt, "bc")[1][:-1], eos]


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_decoding_gives_the_text_without_special_tokens(tiny_tokenizer, texts):
    completions = [encode(tiny_tokenizer, "q ", text)[1] for text in texts]
    padded = [ids + [tiny_tokenizer.pad_token_id] for ids in completions]
    assert decode(tiny_tokenizer, completions) == decode(tiny_tokenizer, padded) == texts


def test_arguments_of_the_chat_template_reach_it():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<assistant>{% endif %}", "<assistant>{{ mood }}{% endif %}")
    text, ids = tokenize_prompt(tokenizer, chat("hi"), mood="calm")
    assert text.endswith("<assistant>calm")
    assert tokenizer.decode(ids).endswith("<assistant>calm")


# ---------------------------------------------------------------- what cannot be trained


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused(tiny_tokenizer):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match="no end-of-sequence token, so a response could never end; set `tokenizer.eos"
    ):
        check_tokenizer(tokenizer, conversational=False)
    check_tokenizer(tiny_tokenizer, conversational=False)


def test_a_tokenizer_without_a_chat_template_is_refused_for_conversations_only(tiny_tokenizer):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    check_tokenizer(tokenizer, conversational=False)
    with pytest.raises(ValueError, match="the tokenizer has no chat template; use a chat model"):
        check_tokenizer(tokenizer, conversational=True)
    check_tokenizer(tiny_tokenizer, conversational=True)


# ---------------------------------------------------------------- stop tokens


def test_stop_tokens_are_the_tokenizers_first_then_the_models_each_once(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    assert stop_token_ids(tiny_tokenizer, GenerationConfig(eos_token_id=None)) == [eos]
    assert stop_token_ids(tiny_tokenizer, GenerationConfig(eos_token_id=eos)) == [eos]
    assert stop_token_ids(tiny_tokenizer, GenerationConfig(eos_token_id=7)) == [eos, 7]
    assert stop_token_ids(tiny_tokenizer, GenerationConfig(eos_token_id=[7, eos, 9])) == [eos, 7, 9]


@pytest.fixture(scope="module")
def gemma_like():
    """A turn ends with another token than `<eos>`, and a newline follows it; the model stops at both."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.add_tokens(["\n"])
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ eos_token }}", "<end_of_turn>{{ '\n' }}")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    return tokenizer, end, GenerationConfig(eos_token_id=[tokenizer.eos_token_id, end])


def test_a_correction_ends_its_turn_with_the_templates_token(gemma_like):
    tokenizer, end, generation_config = gemma_like
    completion_ids = encode(tokenizer, chat("hi"), "yes", generation_config)[1]
    assert completion_ids == [*tokenizer("yes", add_special_tokens=False)["input_ids"], end]


def test_a_plain_completion_ends_with_the_end_of_sequence_token(gemma_like):
    tokenizer, end, generation_config = gemma_like
    completion_ids = encode(tokenizer, "hi", "yes", generation_config)[1]
    assert completion_ids[-1] == tokenizer.eos_token_id and end not in completion_ids


def test_a_template_token_at_which_the_model_does_not_stop_is_not_used(gemma_like):
    tokenizer, _, _ = gemma_like
    assert encode(tokenizer, chat("hi"), "yes")[1][-1] == tokenizer.eos_token_id


# ---------------------------------------------------------------- tokens that merge across the boundary


@pytest.fixture(scope="module")
def merging():
    """A byte-pair tokenizer in which 'a' and 'b' become one token 'ab'."""
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("a", "b"), ("b", "c")]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def test_a_token_across_the_boundary_falls_back_to_the_completion_alone(merging):
    assert merging("cab")["input_ids"] == [3, 4]
    assert encode(merging, "ca", "bc") == ([3, 1], [5, 0])
    assert encode(merging, "c", "ab") == ([3], [4, 0])


@given(prompt=st.text("abc", min_size=1, max_size=6), completion=st.text("abc", min_size=1, max_size=6))
def test_whatever_merges_the_completion_decodes_to_itself(merging, prompt, completion):
    prompt_ids, completion_ids = encode(merging, prompt, completion)
    pieces = [merging.convert_ids_to_tokens(ids) for ids in (prompt_ids, completion_ids)]
    assert ["".join(piece) for piece in pieces] == [prompt, completion + "<eos>"]


@pytest.mark.parametrize("prompt", ["a", chat("a")], ids=["plain", "chat"])
def test_a_tokenizer_that_marks_the_start_of_a_text_marks_the_prompt_only(prompt):
    vocabulary = {"<eos>": 0, "▁": 1, "a": 2, "b": 3, "<bos>": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 4)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    assert tokenizer("b", add_special_tokens=False)["input_ids"] == [1, 3]  # alone, it would get a mark of its own
    assert encode(tokenizer, prompt, "b") == ([4, 1, 2] if prompt == "a" else [4, 2], [3, 0])


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt():
    tokenizer = build_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    prompt_ids, completion_ids = encode(tokenizer, "ab", "c")
    assert completion_ids == [tokenizer.convert_tokens_to_ids("c"), eos]
    assert prompt_ids == [bos, *tokenizer.convert_tokens_to_ids(["a", "b"])]


# ---------------------------------------------------------------- a real tokenizer


@pytest.fixture(scope="module")
def phi_3():
    if not PHI_3.is_dir():
        pytest.skip("the Phi-3 tokenizer is not here (../shared/data/tokenizers/phi-3-mini)")
    return AutoTokenizer.from_pretrained(PHI_3)


@pytest.mark.parametrize("completion", ["42", "The answer is 42.", " leading space", "two\nlines", "naïve — ✓"])
def test_real_tokenizer_plain(phi_3, completion):
    prompt_ids, completion_ids = encode(phi_3, "What is 6 times 7? ", completion)
    assert completion_ids[-1] == phi_3.eos_token_id and completion_ids.count(phi_3.eos_token_id) == 1
    whole = phi_3.decode(prompt_ids + completion_ids[:-1], skip_special_tokens=True)
    assert whole.replace(" ", "") == ("What is 6 times 7? " + completion).replace(" ", "")
    assert phi_3.bos_token_id not in completion_ids


@pytest.mark.parametrize("completion", ["42", "The answer is 42.", "two\nlines", "naïve — ✓"])
def test_real_tokenizer_chat(phi_3, completion):
    if phi_3.chat_template is None:
        pytest.skip("this copy of the Phi-3 tokenizer has no chat template")
    end = phi_3.convert_tokens_to_ids("<|end|>")
    generation_config = GenerationConfig(eos_token_id=[phi_3.eos_token_id, end])
    prompt_ids, completion_ids = encode(phi_3, chat("What is 6 times 7?"), completion, generation_config)
    assert completion_ids[-1] == end and completion_ids.count(end) == 1
    assert decode(phi_3, [completion_ids]) == [completion]
    conversation = [*chat("What is 6 times 7?"), {"role": "assistant", "content": completion}]
    whole = phi_3.apply_chat_template(conversation, return_dict=True)["input_ids"]
    assert whole[: len(prompt_ids + completion_ids)] == prompt_ids + completion_ids


PARTS = [{"type": "text", "text": "1 +"}, {"type": "text", "text": " 1 ="}]
TEXT_TEMPLATE = "{% for m in messages %}<user>{{ m.content }}{% endfor %}"
PARTS_TEMPLATE = "{% for m in messages %}<user>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [TEXT_TEMPLATE, PARTS_TEMPLATE])
@pytest.mark.parametrize("content", ["1 + 1 =", PARTS])
def test_texts_and_parts_are_what_the_template_reads(tiny_tokenizer, template, content):
    """The one kind of template would print a list as Python does, the other nothing at all of a text."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    text, ids = tokenize_prompt(tokenizer, [{"role": "user", "content": content}])
    assert text == "<user>1 + 1 =" and tokenizer.decode(ids) == text
    tokenizer.chat_template = CHAT_TEMPLATE  # set anew, it is looked at anew
    assert "1 + 1 =" in tokenize_prompt(tokenizer, [{"role": "user", "content": content}])[0]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('System role not supported') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content }}",
        "{{ messages[0].content.nothing() }}",
    ],
)
def test_what_a_template_cannot_render_is_one_sentence(tiny_tokenizer, template):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    messages = [{"role": "system", "content": "be\nbrief"}, {"role": "user", "content": "1+1="}]
    with pytest.raises(BadInput, match=r"template refuses the messages \(roles: system, user\)") as error:
        tokenize_prompt(tokenizer, messages)
    assert "\n" not in str(error.value) and "no system message" in str(error.value)


def test_the_first_prompt_that_a_template_refuses_is_named_by_its_row(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = no_system + CHAT_TEMPLATE
    prompts = [chat(text) for text in "abcd"]
    check_prompts(tokenizer, Dataset.from_dict({"prompt": prompts}), "data")
    prompts[2] = [{"role": "system", "content": "be brief"}, *prompts[2]]
    with pytest.raises(BadInput, match="`data`, row 2: The chat template refuses .* no system"):
        check_prompts(tokenizer, Dataset.from_dict({"prompt": prompts}), "data")
