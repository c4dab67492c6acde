"""
Questions with choices, of texts and of images, as [SCL](https://huggingface.co/papers/2410.04055) asks, reviews and
reads them.

Data on the Hub: AQuA (`deepmind/aqua_rat`), MMStar (`Lin-Chen/MMStar`), MMBench (`lmms-lab/MMBench_EN`), ScienceQA
(`lmms-lab/ScienceQA`), SEED-Bench (`lmms-lab/SEED-Bench`), RealWorldQA (`lmms-lab/RealWorldQA`), or a file of one of
these forms. Value: 1 if the choice between two `##` at the end is the right one; a response without it is wrong, as in
the paper.
"""

import re

from datasets import Dataset, Features, Image

from ..data_utils import published_columns
from ..errors import BadInput
from ..rewards.common import after_thinking, completion_text, read_column


__all__ = [
    "REVIEW",
    "REVIEW_CONTEXT",
    "REVIEW_DETAILS",
    "REVIEW_SCENE",
    "accuracy",
    "answer",
    "problems",
]

LETTERS = "ABCDEFGHIJ"
# The paper's sentences; the example of the format is a digit where choices are numbered, as ScienceQA's are
EXPLAIN = "Explain your reasoning step-by-step."
FORMAT = (
    "Your final answer should be put between two ##, like ## {example} ## (if your final answer is {example}), at the "
    "end of your response."
)
_END = f" {EXPLAIN} " + FORMAT.format(example="A")
# The paper's reviews: the critic's, and three for images
REVIEW = (
    "Review your previous answer and find problems with your answer. Based on the problems you found, improve your "
    "answer." + _END
)
REVIEW_DETAILS = (
    "Review your previous answer and ensure that all relevant aspects of the image have been considered. Are there "
    "any elements or details that you missed? Based on your review, improve your answer." + _END
)
REVIEW_CONTEXT = (
    "Review your contextual understanding of the image. Have you correctly interpreted the overall context and "
    "purpose of the scene? Based on your review, improve your answer." + _END
)
REVIEW_SCENE = (
    "Review your answer and ensure that your understanding of the image is comprehensive and detailed. Are there "
    "any aspects of the scene that you have omitted or misinterpreted? Based on your review, improve your answer."
    + _END
)

MARKED = re.compile(r"##([^#\n]{1,60})(?=##)")
FORMS = (
    ("question", "options", "correct"),  # AQuA
    ("question", "choices", "answer"),  # ScienceQA
    ("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer"),  # SEED-Bench
    ("question", "A", "B", "answer"),  # MMBench
    ("question", "image", "answer"),  # MMStar, RealWorldQA: the choices stand in the question
)


def problems(dataset: Dataset) -> Dataset:
    """
    One row per question: `prompt` (a message), `answer` (a letter; in RealWorldQA also a word or a number) and, where
    there is one, `image`. Rows without a right answer are left out; choices that come as numbers get letters; hints
    (of MMBench and ScienceQA) are not shown, as in the paper.

    Args:
        dataset ([`~datasets.Dataset`]):
            A split of one of the data sets above.

    Raises:
        BadInput: If the columns are those of none, or no row has a right answer.
    """
    form = published_columns(dataset, "a multiple choice", *FORMS)
    image = [name for name in ("image",) if name in dataset.column_names]
    texts = dataset.remove_columns(image)
    prompts, answers, kept = [], [], []
    for number, row in enumerate(texts):
        gold = row[form[-1]]
        if gold is None or gold == "":
            continue
        question = "\n".join(filter(None, [row["question"], _choices(row, form)]))
        prompts.append([{"role": "user", "content": question + _END}])
        answers.append(LETTERS[int(gold)] if form == FORMS[1] and str(gold).isdecimal() else _tidy(str(gold)))
        kept.append(number)
    if not kept:
        raise BadInput("no row has a right answer: test splits are often published without; name another split.")
    found = Dataset.from_dict({"prompt": prompts, "answer": answers})
    if not image:
        return found
    images = dataset.select_columns(image).select(kept)
    if isinstance(images[0]["image"], list):  # SEED-Bench's frames, of which the authors show the first
        images = images.map(lambda row: {"image": row["image"][0]}, features=Features({"image": Image()}))
    return images.add_column("prompt", found["prompt"][:]).add_column("answer", found["answer"][:])


def _choices(row: dict, form: tuple[str, ...]) -> str:
    """The choices, one a line, each after its letter; nothing, where they stand in the question."""
    if form == FORMS[0]:
        return "\n".join(f"{option[0]}. {option[2:].strip()}" for option in row["options"])
    if form == FORMS[1]:
        listed = list(zip(LETTERS, row["choices"], strict=False))
    elif form == FORMS[2]:
        listed = [(letter, row[f"choice_{letter.lower()}"]) for letter in "ABCD"]
    elif form == FORMS[3]:
        listed = [(letter, row.get(letter)) for letter in LETTERS if row.get(letter) not in (None, "", "nan")]
    else:
        listed = []
    return "\n".join(f"{letter}. {choice}" for letter, choice in listed)


def _tidy(text: str) -> str:
    """A choice without what stands around it: `(b)` and `B.` are `B`; RealWorldQA's words and numbers stay."""
    return text.strip("() .*").upper()


def answer(response: str) -> str | None:
    """The last choice between two `##`, `None` if there is none; for `extract_answer`."""
    marked = [found for found in map(_tidy, MARKED.findall(after_thinking(response))) if found]
    return marked[-1] if marked else None


def accuracy(completions: list, **columns) -> list[float | None]:
    """Value function: 1 if the marked choice is the one of the column `answer`, else 0."""
    golds = read_column("answer", "accuracy", columns, len(completions))
    return [
        float(answer(completion_text(completion)) == gold) for completion, gold in zip(completions, golds, strict=True)
    ]
