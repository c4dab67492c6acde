"""From text to token ids and back, in one place, so that training, sampling and evaluation see the same tokens.

The rules. A prompt is rendered by the chat template with its generation prompt (or tokenised as it is, when plain). A
completion is what the model would have to emit after that (`completions.py`). Sampled responses are never decoded and
re-encoded: they are trained as the ids that were sampled.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from datasets import Dataset
from jinja2.exceptions import TemplateError
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data_utils import chat_template_kwargs as row_template_kwargs
from ..errors import BadInput, first_line
from ..functions import Prompt


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """
    Refuse a tokenizer with which nothing can be trained.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        conversational (`bool`):
            Whether the prompts are lists of messages.

    Raises:
        BadInput: If there is no end-of-sequence token, or no chat template for conversational prompts.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "The tokenizer has no end-of-sequence token, so a response could never end; set `tokenizer.eos_token` "
            "and pass the tokenizer as `processing_class`."
        )
    if conversational and tokenizer.chat_template is None:
        raise BadInput(
            "The prompts are conversational (lists of messages), but the tokenizer has no chat template; use a chat "
            "model, set `tokenizer.chat_template`, or give the prompts as plain text."
        )


def check_vocabulary(model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse a tokenizer that has more tokens than the model has embeddings.

    Raises:
        BadInput: With both numbers.
    """
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    embeddings = model.get_input_embeddings()
    n_embeddings = getattr(embeddings, "num_embeddings", n_tokens)  # sharded weights show their part alone
    if n_embeddings < n_tokens:
        raise BadInput(
            f"The tokenizer has {n_tokens} tokens and the model {n_embeddings} embeddings: use the model's own "
            "tokenizer, or call `model.resize_token_embeddings(len(tokenizer))`, save both, and start from there."
        )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> list[int]:
    """Every token id that ends a response: the tokenizer's end-of-sequence token first, then those the model
    declares."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return [tokenizer.eos_token_id, *(token for token in declared if token != tokenizer.eos_token_id)]


def generation_config_of(model: str | PreTrainedModel, load_kwargs: dict[str, Any] | None = None) -> GenerationConfig:
    """The generation settings of a model, also before it is loaded."""
    if not isinstance(model, str):
        return model.generation_config
    kwargs = {key: (load_kwargs or {})[key] for key in ("revision", "trust_remote_code") if key in (load_kwargs or {})}
    try:
        return GenerationConfig.from_pretrained(model, **kwargs)
    except OSError:  # it has no file of its own
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, **kwargs))


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text, with the special tokens that the tokenizer puts in front of it, each once; none at the end,
    from which the policy has to go on."""
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    return ids


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **chat_template_kwargs: Any
) -> tuple[str, list[int]]:
    """
    Text and token ids after which the policy starts to write.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        prompt (`str` or `list[dict]`):
            Plain text, or messages.
        **chat_template_kwargs:
            Passed to the chat template (`tools`, `enable_thinking`, ...).

    Returns:
        `tuple[str, list[int]]`: The rendered prompt and its ids.
    """
    if isinstance(prompt, str):
        return prompt, plain_ids(tokenizer, prompt)
    text = render_chat(tokenizer, prompt, add_generation_prompt=True, **chat_template_kwargs)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """
    Messages as the tokenizer's chat template writes them. A template that is written for texts gets a message's text
    parts as one text, one that is written for parts gets a text as a part: each would pass over, or print as Python,
    what is in the other form.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a chat template.
        messages (`list[dict]`):
            The conversation.
        **kwargs:
            Of `apply_chat_template`.

    Raises:
        BadInput: If the template refuses the messages, or cannot read them.
    """
    shows_texts, shows_parts = _forms_of_content(tokenizer, repr(tokenizer.chat_template))
    readable = []
    for message in messages:
        # Tables fill up the keys that a message does not have; templates ask whether a key is there
        message = {key: value for key, value in message.items() if value is not None or key == "content"}
        content = message.get("content")
        if isinstance(content, str) and not shows_texts and shows_parts:
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not shows_parts and all(part.get("type") == "text" for part in content):
            content = "".join(part.get("text") or "" for part in content)
        readable.append(message | {"content": content} if "content" in message else message)
    try:
        return tokenizer.apply_chat_template(readable, tokenize=False, **kwargs)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise BadInput(
            f"The chat template refuses the messages (roles: {roles[:100]}): {first_line(error).rstrip('.')}; bring "
            "them into a form that it takes (some take no system message, no tool, or only user and assistant in "
            f"turn), or set another `tokenizer.chat_template`. They are {str(messages)[:200]!r}."
        ) from error


def check_prompts(
    tokenizer: PreTrainedTokenizerBase, dataset: Dataset, name: str, **chat_template_kwargs: Any
) -> None:
    """
    See, before anything is sampled, that the chat template takes the prompts: one of each sequence of roles, which is
    what templates refuse.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        dataset ([`~datasets.Dataset`]):
            With a column `prompt`. Of a stream nothing is looked at.
        name (`str`):
            What the message calls it.
        **chat_template_kwargs:
            Passed to the chat template; a row's own come first.

    Raises:
        BadInput: With the number of the first row that is refused.
    """
    seen = set()
    for index, prompt in enumerate(dataset["prompt"] if isinstance(dataset, Dataset) else ()):
        if isinstance(prompt, str):
            return
        form = tuple((message["role"], type(message["content"])) for message in prompt)
        if form not in seen:
            seen.add(form)
            try:
                tokenize_prompt(tokenizer, prompt, **chat_template_kwargs | row_template_kwargs(dataset[index]))
            except BadInput as error:
                raise BadInput(f"`{name}`, row {index}: {error}") from error


@lru_cache(maxsize=16)
def _forms_of_content(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> tuple[bool, bool]:
    """Whether a template writes the text of a message that is a text, and of one that is a list of parts. It is an
    argument because it may be set anew."""

    def shows(content):
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except Exception:  # what a template does with what it is not written for, nobody knows
            return False
        return "shown" in text and "'text'" not in text

    return shows("shown"), shows([{"type": "text", "text": "shown"}])


def decode(tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of sampled responses, without special tokens."""
    return tokenizer.batch_decode([list(ids) for ids in completion_ids], skip_special_tokens=True)
