"""Build the embedded default from scratch: a small task with exact verification, and a tiny chat model that makes real
mistakes on it.

    python data/build.py                    # dataset, tokenizer, model, evaluation, cards
    python data/build.py --only data        # the dataset and its card
    python data/build.py --only model       # tokenizer, model, evaluation and model card; reads the dataset from disk

The task is the addition of two 12-digit numbers, written with the most significant digit first. Half of the columns
add up to nine, so that a carry can travel through many of them. Writing the first digit then needs look-ahead through
a chain of nines, which is hard; reading a finished answer, the carry into a column can be seen next to it, which is
easy. A second look therefore sees what the first could not, and this makes the task a test bed for self-correction.

The model is trained in three phases, each limited by steps and steered by measurements on the validation split:

1. first answers: one turn, until a given share of the validation problems is answered correctly;
2. skill: two turns, the second being the right answer half of the time and a copy of the first otherwise;
3. habit: two turns, the second nearly always a copy, in short pieces until copying is the rule.

The result is a model that can see its errors and hardly ever corrects them: what correction training starts from.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Value, disable_progress_bars
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


DATASET_NAME = "carry_addition"
MODEL_NAME = "tiny-carry-chat"

# ---------------------------------------------------------------------------------------------------------------------
# Task
# ---------------------------------------------------------------------------------------------------------------------

OPERAND_DIGITS = 12
ANSWER_DIGITS = OPERAND_DIGITS + 1
RESPONSE_TOKENS = ANSWER_DIGITS + 1  # the digits and the end of the turn

# Split name -> (number of problems, probability that a column adds up to nine).
SPLITS = {
    "train": (16_000, 0.5),
    "validation": (1_000, 0.5),
    "test": (2_000, 0.5),
    "test_hard": (2_000, 0.7),
}
SECOND_TURN = "There might be an error in the answer above. Please correct it."


def problem_key(operands):
    """One key for a problem and its commuted form."""
    return b"".join(sorted([operands[:OPERAND_DIGITS].tobytes(), operands[OPERAND_DIGITS:].tobytes()]))


def draw_problems(rng, number, nine_probability, taken):
    """
    Draw `number` problems that are not in `taken`, and add them to it.

    Args:
        rng (`np.random.Generator`): Source of randomness.
        number (`int`): How many problems to draw.
        nine_probability (`float` or `tuple[float, float]`): Probability that a column adds up to nine, or the interval
            from which each problem draws its own.
        taken (`set[bytes]`): Keys of the problems that exist already. A problem and its commuted form share one key.

    Returns:
        `np.ndarray` of shape `(number, 24)`: the digits of both operands, most significant first.
    """
    kept = []
    while len(kept) < number:
        missing = number - len(kept)
        low, high = nine_probability if isinstance(nine_probability, tuple) else (nine_probability, nine_probability)
        probability = rng.uniform(low, high, size=(missing, 1))
        a = rng.integers(0, 10, size=(missing, OPERAND_DIGITS), dtype=np.uint8)
        b = rng.integers(0, 10, size=(missing, OPERAND_DIGITS), dtype=np.uint8)
        b = np.where(rng.random((missing, OPERAND_DIGITS)) < probability, 9 - a, b).astype(np.uint8)
        for row in np.concatenate([a, b], axis=1):
            key = problem_key(row)
            if key not in taken:
                taken.add(key)
                kept.append(row)
    return np.stack(kept)


def add(operands):
    """The right answers, shape `(n, 13)`, to operands of shape `(n, 24)`."""
    powers = 10 ** np.arange(OPERAND_DIGITS, -1, -1, dtype=np.int64)
    a = operands[:, :OPERAND_DIGITS].astype(np.int64) @ powers[1:]
    b = operands[:, OPERAND_DIGITS:].astype(np.int64) @ powers[1:]
    return ((a + b)[:, None] // powers % 10).astype(np.uint8)


def digits_to_text(digits):
    return "".join(map(str, digits))


def text_to_digits(text):
    return [int(character) for character in text if character.isdigit()]


def question(operands):
    """The user's message for one row of operands."""
    return f"{digits_to_text(operands[:OPERAND_DIGITS])} + {digits_to_text(operands[OPERAND_DIGITS:])} ="


def build_dataset(folder, seed):
    """Write the four splits and the dataset card to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "answer": Value("string")})
    taken = set()  # shared by all splits, so that no problem can occur twice, in either order of its operands
    for index, (split, (number, nine_probability)) in enumerate(tqdm(SPLITS.items(), desc="dataset", unit="split")):
        operands = draw_problems(np.random.default_rng([seed, index]), number, nine_probability, taken)
        columns = {
            "prompt": [[{"role": "user", "content": question(row)}] for row in operands],
            "answer": [digits_to_text(row) for row in add(operands)],
        }
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    (folder / "README.md").write_text(dataset_card(seed), encoding="utf-8")


def load_operands(folder, split, number=None):
    """The operands of the first `number` problems of a split."""
    rows = Dataset.from_parquet(str(folder / f"{split}.parquet"), keep_in_memory=True)["prompt"][:number]
    return np.array([text_to_digits(row[0]["content"]) for row in rows], dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ---------------------------------------------------------------------------------------------------------------------

PAD, UNKNOWN, END = "<pad>", "<unk>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

# A word inside a sentence carries the space before it, so that joining the tokens gives the text back. Besides the
# second turn, the words serve instructions and feedback such as "The digit at position 3 from the left is wrong."
SENTENCE_STARTS = "Answer Check Correct Feedback Is No Please Problem Suppose The There What X Yes".split()
WORDS = (
    "There might be an error in the answer above Please correct it The is wrong right digit digits number at position "
    "from left first carry check Is Yes No Feedback feedback Check X Suppose suppose What what a and are into last "
    "not of one or should that this to"
).split()
VOCABULARY = (
    [PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END]
    + list("0123456789")
    + [" ", "\n", "+", " +", "-", " -", "=", " =", ".", ",", ":", "?"]
    + SENTENCE_STARTS
    + [f" {word}" for word in WORDS]
)

# Every assistant turn, its end token included, lies between the generation markers (TRL's `assistant_only_loss`). A
# conversation's rendering is a prefix of the rendering of its continuation.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
        {{- message.content + '<|end|>' -}}
        {%- endgeneration -%}
    {%- elif message.role in ['system', 'user'] -%}
        {{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('Unknown role: ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
MAX_POSITIONS = 512


def build_tokenizer():
    """One token per digit, operator and word; text over this vocabulary survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN)
    )
    # The pieces: a digit; a word or an operator with the space before it; any other single character.
    pieces = Regex(r"[0-9]| ?[A-Za-z]+| ?[-+=]|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class DialogueCodec:
    """Turns arrays of digits into token ids. All dialogues have one shape, so a template with free slots is enough."""

    def __init__(self, tokenizer):
        self.end = tokenizer.eos_token_id
        self.digit_ids = np.array(tokenizer.convert_tokens_to_ids(list("0123456789")))
        user = {"role": "user", "content": question([0] * 2 * OPERAND_DIGITS)}
        answer = {"role": "assistant", "content": "0" * ANSWER_DIGITS}
        instruction = {"role": "user", "content": SECOND_TURN}

        def encode(messages):
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

        self.prompt = np.array(encode([user]))
        self.slots = np.flatnonzero(np.isin(self.prompt, self.digit_ids))
        # What stands between the two responses: the instruction and the header of the second one.
        self.between = np.array(encode([user, answer, instruction])[len(self.prompt) + RESPONSE_TOKENS :])

    def prompts(self, operands):
        ids = np.tile(self.prompt, (len(operands), 1))
        ids[:, self.slots] = self.digit_ids[operands]
        return ids

    def responses(self, answers):
        return np.pad(self.digit_ids[answers], ((0, 0), (0, 1)), constant_values=self.end)

    def second_prompts(self, prompts, responses):
        """Append the first response, as the ids that were sampled, and the instruction of the second turn."""
        return np.concatenate([prompts, responses, np.tile(self.between, (len(prompts), 1))], axis=1)

    def well_formed(self, responses):
        """Which responses are 13 digits and the end token."""
        return np.isin(responses[:, :-1], self.digit_ids).all(axis=1) & (responses[:, -1] == self.end)


# ---------------------------------------------------------------------------------------------------------------------
# Model: creation, sampling, evaluation
# ---------------------------------------------------------------------------------------------------------------------


def build_model(tokenizer, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


@torch.inference_mode()
def respond(model, prompts, temperature, generator, batch_size=250):
    """Write one response of 14 tokens per prompt; `temperature=0` is greedy decoding."""
    model.eval()
    responses = []
    for start in range(0, len(prompts), batch_size):
        input_ids, cache, tokens = torch.from_numpy(prompts[start : start + batch_size]), None, []
        for _ in range(RESPONSE_TOKENS):
            output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[:, -1]
            if temperature == 0:
                input_ids = logits.argmax(dim=-1, keepdim=True)
            else:
                input_ids = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)
            tokens.append(input_ids)
        responses.append(torch.cat(tokens, dim=1).numpy())
    return np.concatenate(responses)


def evaluate(model, codec, operands, temperature, seed):
    """
    Two turns on every problem, with the metrics of self-correction as fractions of all problems.

    Returns:
        `dict[str, float]`: each metric, and its standard error under the name with `_se` appended.
    """
    generator = torch.Generator().manual_seed(seed)
    gold = codec.responses(add(operands))
    prompts = codec.prompts(operands)
    first = respond(model, prompts, temperature, generator)
    second = respond(model, codec.second_prompts(prompts, first), temperature, generator)
    right_1, right_2 = (first == gold).all(axis=1), (second == gold).all(axis=1)
    per_problem = {
        "acc@t1": right_1,
        "acc@t2": right_2,
        "delta(t1,t2)": right_2.astype(float) - right_1,
        "delta(i->c)": ~right_1 & right_2,
        "delta(c->i)": right_1 & ~right_2,
        "unchanged": (first == second).all(axis=1),
        "well_formed": codec.well_formed(first) & codec.well_formed(second),
    }
    metrics = {}
    for name, values in per_problem.items():
        metrics[name] = float(np.mean(values))
        metrics[f"{name}_se"] = float(np.std(values) / math.sqrt(len(values)))
    return metrics


def summary(metrics):
    names = ["acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "unchanged"]
    return "  ".join(f"{name} {100 * metrics[name]:.1f}" for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------

BATCH_SIZE = 128
PIECE_STEPS = 50  # every phase is made of pieces of this many steps, with a measurement after each
TRAINING_NINES = (0.0, 0.5)  # every training problem draws its own share of columns that add up to nine
VALIDATION_PROBLEMS = 1_000
IGNORED = -100

# Phase 1, first answers: ends when the greedy accuracy on validation is reached.
FIRST_LEARNING_RATE, FIRST_WARMUP, FIRST_MAX_PIECES, FIRST_ACCURACY = 2e-3, 100, 36, 0.50
# Phase 2, skill: a fixed number of steps, with a falling learning rate. `copy` is the share of second answers that
# repeat the first. It is below one half, so that a wrong first answer is more often corrected than kept.
SKILL_LEARNING_RATE, SKILL_PIECES, SKILL_COPY = 1.5e-3, 7, 0.3
# Phase 3, habit: ends when copying is the rule and corrections at temperature 1 are rare but not absent. `again` is
# the share of second answers that are the model's first attempt sampled once more; it makes mistakes as likely as
# gains.
HABIT_LEARNING_RATE, HABIT_MAX_PIECES, HABIT_AGAIN = 1e-3, 8, 0.04
HABIT_COPY, HABIT_COPY_CHANGE = 0.91, 0.02  # share in the first piece; change when corrections are out of range
HABIT_UNCHANGED, HABIT_CORRECTIONS = 0.975, (0.03, 0.055)
# In phases 2 and 3 first answers are the model's own samples. While their accuracy is below the target, this share of
# them is replaced by the right answer.
TARGET_ACCURACY, GIVEN_SHARE = 0.58, 0.15


def one_turn_rows(codec, operands):
    """Token ids and labels of dialogues with one turn."""
    prompts, responses = codec.prompts(operands), codec.responses(add(operands))
    labels = np.concatenate([np.full_like(prompts, IGNORED), responses], axis=1)
    return np.concatenate([prompts, responses], axis=1), labels


def two_turn_rows(codec, model, operands, given, copy, again, rng):
    """
    Token ids and labels of dialogues with two turns.

    A share `given` of the first answers is right. The others are the model's own samples, so that it looks at its own
    mistakes, and are trained as they stand: in expectation this has no gradient, and it holds the first turn where it
    is while the second one is trained. The second answer is a copy of the first (share `copy`), or the model's first
    attempt sampled once more (share `again`), or else the right answer.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    prompts, gold = codec.prompts(operands), codec.responses(add(operands))
    right = rng.random((len(operands), 1)) < given
    first = np.where(right, gold, respond(model, prompts, 1.0, generator))
    kind = rng.random((len(operands), 1))
    second = np.where(kind < copy, first, gold)
    if again > 0:
        second = np.where(kind >= 1 - again, respond(model, prompts, 1.0, generator), second)
    context = codec.second_prompts(prompts, first)
    labels = np.full_like(context, IGNORED)
    labels[:, prompts.shape[1] : prompts.shape[1] + RESPONSE_TOKENS] = first
    return np.concatenate([context, second], axis=1), np.concatenate([labels, second], axis=1)


def train_piece(model, optimizer, rows, learning_rates, progress):
    """One optimizer step per learning rate, over consecutive batches of the rows."""
    model.train()
    input_ids, labels = map(torch.from_numpy, rows)
    for index, learning_rate in enumerate(learning_rates):
        batch = slice(index * BATCH_SIZE, (index + 1) * BATCH_SIZE)
        logits = model(input_ids=input_ids[batch], use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[batch, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rate)
        optimizer.step()
        progress.update()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def train_model(model, codec, validation, taken, seed):
    """
    Train in three phases; the problems of the dataset, in `taken`, are never trained on.

    Returns:
        `dict[str, int]`: the number of steps of each phase.
    """
    rng = np.random.default_rng([seed, 100])
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    gold = codec.responses(add(validation))

    def draw():
        return draw_problems(rng, PIECE_STEPS * BATCH_SIZE, TRAINING_NINES, taken)

    def measure(progress, temperature):
        metrics = evaluate(model, codec, validation, temperature, seed)
        decoding = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        progress.write(f"{progress.desc}, step {progress.n}, {decoding}: {summary(metrics)}")
        return metrics

    with tqdm(desc="first answers", total=FIRST_MAX_PIECES * PIECE_STEPS, unit="step") as progress:
        accuracy = 0.0
        while accuracy < FIRST_ACCURACY and progress.n < progress.total:
            learning_rates = np.minimum(1.0, (progress.n + 1 + np.arange(PIECE_STEPS)) / FIRST_WARMUP)
            train_piece(model, optimizer, one_turn_rows(codec, draw()), FIRST_LEARNING_RATE * learning_rates, progress)
            accuracy = (respond(model, codec.prompts(validation), 0, None) == gold).all(axis=1).mean()
            progress.write(f"{progress.desc}, step {progress.n}, greedy: acc@t1 {100 * accuracy:.1f}")
        first_steps = progress.n

    with tqdm(desc="skill", total=SKILL_PIECES * PIECE_STEPS, unit="step") as progress:
        for learning_rates in np.split(SKILL_LEARNING_RATE * np.linspace(1.0, 0.1, progress.total), SKILL_PIECES):
            given = GIVEN_SHARE if accuracy < TARGET_ACCURACY else 0.0
            rows = two_turn_rows(codec, model, draw(), given, SKILL_COPY, 0.0, rng)
            train_piece(model, optimizer, rows, learning_rates, progress)
            accuracy = measure(progress, 0)["acc@t1"]
        skill_steps = progress.n

    with tqdm(desc="habit", total=HABIT_MAX_PIECES * PIECE_STEPS, unit="step") as progress:
        learning_rates = HABIT_LEARNING_RATE * np.linspace(1.0, 0.1, PIECE_STEPS)
        copy, (low, high) = HABIT_COPY, HABIT_CORRECTIONS
        while progress.n < progress.total:
            given = GIVEN_SHARE if accuracy < TARGET_ACCURACY else 0.0
            rows = two_turn_rows(codec, model, draw(), given, copy, HABIT_AGAIN, rng)
            train_piece(model, optimizer, rows, learning_rates, progress)
            greedy, sampled = measure(progress, 0), measure(progress, 1.0)
            accuracy, corrections = greedy["acc@t1"], sampled["delta(i->c)"]
            if greedy["unchanged"] < HABIT_UNCHANGED or corrections > high:
                copy = min(copy + HABIT_COPY_CHANGE, 1 - HABIT_AGAIN)
            elif corrections < low:
                copy -= HABIT_COPY_CHANGE
            else:
                break
        else:
            progress.write("The habit phase used all its steps without meeting its stopping rule.")
        habit_steps = progress.n
    return {"first answers": first_steps, "skill": skill_steps, "habit": habit_steps}


def build_model_folder(folder, dataset_folder, seed):
    """Train, save, load again as a user would, evaluate, and write the model card."""
    start = time.process_time()  # CPU time: not disturbed by what else the machine does
    tokenizer = build_tokenizer()
    codec = DialogueCodec(tokenizer)
    model = build_model(tokenizer, seed)
    problems = {split: load_operands(dataset_folder, split) for split in SPLITS}
    taken = {problem_key(row) for rows in problems.values() for row in rows}
    steps = train_model(model, codec, problems["validation"][:VALIDATION_PROBLEMS], taken, seed)
    training_seconds = time.process_time() - start

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    results = {}
    for split in tqdm(["test", "test_hard"], desc="evaluation", unit="split"):
        for decoding, temperature in {"greedy": 0, "temperature 1": 1.0}.items():
            results[f"{split}, {decoding}"] = evaluate(model, codec, problems[split], temperature, seed)
            tqdm.write(f"{split}, {decoding}: {summary(results[f'{split}, {decoding}'])}")
    (folder / "README.md").write_text(model_card(model, results, steps, training_seconds, seed), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Cards
# ---------------------------------------------------------------------------------------------------------------------


TEMPLATES = Path(__file__).resolve().parents[1] / "correction_trl" / "templates"
DATASET_CARD = (TEMPLATES / "carry_addition_card.md").read_text(encoding="utf-8")
MODEL_CARD = (TEMPLATES / "tiny_carry_chat_card.md").read_text(encoding="utf-8")


def dataset_card(seed):
    example = draw_problems(np.random.default_rng(seed), 1, 0.5, set())
    return DATASET_CARD.format(
        name=DATASET_NAME,
        data_files="\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in SPLITS),
        split_rows="\n".join(f"| `{split}` | {number:,} | {share} |" for split, (number, share) in SPLITS.items()),
        operand_digits=OPERAND_DIGITS,
        answer_digits=ANSWER_DIGITS,
        example_question=question(example[0]),
        example_answer=digits_to_text(add(example)[0]),
        seed=seed,
    )


# A build does not repeat these; they come from runs of this script with `--seed 0` and `--seed 1`.
OTHER_SEEDS = """
Seeds need different numbers of steps. The recipe was tuned on seed 0 and then run on seed 1; both met the stopping
rule of the habit phase. Percent on the `test` split:

| seed | steps (first answers, skill, habit) | decoding | acc@t1 | acc@t2 | delta(i->c) | delta(c->i) | unchanged |
|---|---|---|---|---|---|---|---|
| 0 | 600, 350, 50 | greedy | 61.9 | 61.9 | 0.0 | 0.0 | 100.0 |
| 0 | 600, 350, 50 | temperature 1 | 30.9 | 30.9 | 2.9 | 2.9 | 81.8 |
| 1 | 1000, 350, 300 | greedy | 56.9 | 57.2 | 0.8 | 0.5 | 98.0 |
| 1 | 1000, 350, 300 | temperature 1 | 32.8 | 32.6 | 6.0 | 6.1 | 69.7 |

At the end of the skill phase, on validation, the greedy answers of seed 0 were right in 60.7 % (first) and 79.0 %
(second) of the problems, and those of seed 1 in 57.1 % and 73.3 %: what the habit then hides.
"""


def model_card(model, results, steps, training_seconds, seed):
    names = ["acc@t1", "acc@t2", "delta(t1,t2)", "delta(i->c)", "delta(c->i)", "unchanged"]
    result_rows, index = [], []
    for setting, metrics in results.items():
        split = setting.split(",")[0]
        cells = [f"{100 * metrics[name]:.1f} ± {100 * metrics[f'{name}_se']:.1f}" for name in names]
        result_rows.append(f"| {setting} | {SPLITS[split][0]:,} | " + " | ".join(cells) + " |")
        index.append(
            "  - task:\n      type: text-generation\n"
            f"    dataset:\n      name: {DATASET_NAME} ({setting})\n      type: {DATASET_NAME}\n      split: {split}\n"
            "    metrics:"
        )
        index.extend(
            f"    - name: {name}\n      type: {kind}\n      value: {metrics[name]:.4f}"
            for name, kind in [("acc@t1", "accuracy"), ("acc@t2", "accuracy"), ("delta(t1,t2)", "accuracy_difference")]
        )
    example = draw_problems(np.random.default_rng(0), 1, 0.5, set())
    return MODEL_CARD.format(
        name=MODEL_NAME,
        dataset=DATASET_NAME,
        index="\n".join(index),
        parameters=model.num_parameters(),
        example_question=question(example[0]),
        response_tokens=RESPONSE_TOKENS,
        second_turn=SECOND_TURN,
        result_rows="\n".join(result_rows),
        malformed=100 * max(1 - metrics["well_formed"] for metrics in results.values()),
        batch_size=BATCH_SIZE,
        first_steps=steps["first answers"],
        first_accuracy=100 * FIRST_ACCURACY,
        skill_steps=steps["skill"],
        skill_copy=100 * SKILL_COPY,
        habit_steps=steps["habit"],
        habit_copy=100 * HABIT_COPY,
        again=100 * HABIT_AGAIN,
        unchanged=100 * HABIT_UNCHANGED,
        corrections_low=100 * HABIT_CORRECTIONS[0],
        corrections_high=100 * HABIT_CORRECTIONS[1],
        given=100 * GIVEN_SHARE,
        target=100 * TARGET_ACCURACY,
        first_lr=FIRST_LEARNING_RATE,
        skill_lr=SKILL_LEARNING_RATE,
        habit_lr=HABIT_LEARNING_RATE,
        seed=seed,
        training_seconds=training_seconds,
        threads=torch.get_num_threads(),
        other_seeds=OTHER_SEEDS,
    )


def main():
    parser = argparse.ArgumentParser(description="Build the embedded dataset and model from scratch.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path(__file__).resolve().parent, help="where both folders go"
    )
    parser.add_argument("--only", choices=["data", "model"], help="build one part; the model needs the data on disk")
    parser.add_argument("--seed", type=int, default=0, help="seed of the model: weights, training problems, samples")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the dataset")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the weights may depend on it")
    arguments = parser.parse_args()

    disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    if arguments.only != "model":
        build_dataset(arguments.output_dir / DATASET_NAME, arguments.data_seed)
    if arguments.only != "data":
        build_model_folder(arguments.output_dir / MODEL_NAME, arguments.output_dir / DATASET_NAME, arguments.seed)


if __name__ == "__main__":
    main()
