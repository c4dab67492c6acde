"""Where an answer stands: forms that models really write, each of which states 42 (or none)."""

import pytest

from correction_trl.rewards import FinalAnswer, boxed_answer, find_answer, gsm8k_answer
from correction_trl.rewards.common import after_thinking
from correction_trl.rewards.final_answer import last_number_accuracy


MARKDOWN = [
    "So 6 * 7:\n\n| Answer | 42 |",
    "| Step | Value |\n|---|---|\n| 6 * 7 | 41 + 1 |\n| **Final Answer** | **42** |",
    "| Answer |\n|:---:|\n| $42$ |",
    "＃＃＃＃ ４２",
    "The answer is ４２。",
    "#### **42**",
    "####\n42",
    "####\n\n42",
    "####42",
    "#### 42 ####",
    "#### `42`",
    "#### __42__",
    "#### *42*",
    "**#### 42**",
    "> #### 42",
    "#### 42.",
    "#### **42.**",
    "#### $42$",
    r"#### \(42\)",
    r"#### \boxed{42}",
    "#### 42 (forty-two)",
    "#### Answer: 42",
    "#### **Answer:** 42",
    "#### The answer is 42",
    "#### So the final answer is 42.",
    "#### Final Answer\n42",
    "#### Final Answer: \n**42**",
    "**Final Answer**: 42",
    "**Final Answer:** 42",
    "**Final Answer:**\n42",
    "**Final Answer:**\n- 42",
    "The answer is:\n* $42$",
    "**Final Answer**\n\n42",
    "### Final Answer\n42",
    "### Final Answer:\n\n$42$",
    "## Answer\n42",
    "# Answer\n\n**42**",
    "**Answer:** $42$.",
    "**Answer: 42**",
    "***Answer:*** 42",
    "*Answer*: 42",
    "__Answer:__ 42",
    "Answer: **42**",
    "Answer:\n42",
    "Answer\n42",
    "Answer - 42",
    "Answer — 42",
    "Answer = 42",
    "ANSWER: 42",
    "answer : 42",
    "Ans: 42",
    "Final answer → 42",
    "- **Answer:** 42",
    "The answer is: **42**.",
    "The answer is **42**!",
    "<b>Answer:</b> 42",
    "The answer is <strong>42</strong>.",
    "answer: `42`",
    "Answer:\u00a042",
]

SENTENCES = [
    "The answer is 42.",
    "The answer is 42. I am sure the answer is correct.",
    "The answer is 42. This answer is right.",
    "The answer is 42. My previous answer is correct.",
    "The answer is 42. The answer is definitely correct.",
    "The answer is 42, and that answer is verified.",
    "The answer is 42. So this answer is consistent with the sum.",
    "The answer is 42, because 6 * 7 = 42.",
    "The answer is 42, not 41.",
    "The answer is 42 since 6 * 7 is that.",
    "My previous answer of 42 is correct.",
    "My answer of $42$ is right.",
    "So 42 is the correct answer.",
    "Therefore, 42 is the answer.",
    "The correct answer is therefore 42.",
    "The answer is thus 42.",
    "The final answer to the question is 42.",
    "The answer for the total is 42.",
    "The answer is found to be 42.",
    "The answer is given by $42$.",
    "The answer comes out to 42.",
    "The answer should be 42.",
    "Our answer becomes 42.",
    "The answer is not 41. The answer is 42.",
    "The answer is clear: it is easy.\nThe answer is 42",
    "The answer is\n42",
    "The answer is\n\\[\n42\n\\]",
    "The answer is $$42$$.",
    r"Final answer: \(42\)",
    r"The answer is the number $42$.",
    "The final answer is: $42$. I hope it is correct.",
    "Final Answer: The final answer is 42. I hope it is correct.",
    "The answer is “42”.",
    "the answer is '42'",
    "The answer is 42\nThe answer is a whole number, as it must be.",
    "The answer is 42. Is the answer above correct? Yes.",
]

BOXES = [
    r"\boxed{42}",
    r"\boxed{42}. This answer is right.",
    r"\boxed {42}",
    r"\fbox{42}",
    r"\framebox{42}",
    r"\boxed 42",
    r"\boxed{\boxed{42}}",
    r"\boxed{x = \boxed{42}}",
    r"\boxed{41}, no: \boxed{42}",
    r"**\boxed{42}**",
    r"$$\boxed{42}$$",
    r"\[\boxed{42}\]",
    r"The final answer is $\boxed{42}$. I hope it is correct.",
    r"#### \boxed{42}",
    r"The answer is 41? No, it is \boxed{42}. I think the answer is right.",
    r"<answer>\boxed{42}</answer>",
    "<answer>42</answer>",
    "<answer> 42 </answer>",
    "<answer>\nThe answer is 42.\n</answer>",
    "<answer>42",
    "<ANSWER>42</ANSWER>",
    r"<answer>41</answer> no <answer>$42$</answer>",
]

HEADINGS = [
    "#### Step 1\n6 * 7\n#### Step 2\nmultiply\nSo the answer is 42.",
    "#### Step 1: multiply 6 by 7\n...\n#### 42\n#### Step 3: check\nfine",
    "#### 1. Understand the problem\n6 times 7\n#### 2. Solve it\n**Answer: 42**",
    "#### Understanding\n6 * 7\n#### Solution\n6 * 7 = 42\n#### 42",
    "#### Calculation:\n6 * 7\n#### 42\n#### Explanation\nIt is a product.",
    "#### (a) Multiply\n6 * 7\n\nAnswer: 42",
    "#### Part 1\n1\n#### Part 2\n2\n#### Answer\n42",
    "#### Case 1: x > 0\n...\n#### Case 2: x < 0\n...\nThe final answer is 42.",
    "### Step 1\n#### 42\n### Note\nDone.",
]

RUN_ON = [
    "The answer is 42.\n\nQuestion 2: How many?\nThe answer is 7.",
    "The answer is 42.\n\nQ3: How many?\nThe answer is 7.\n\nQ4: And now?\nThe answer is 8.",
    "The final answer is 42.\n\nQuestion 1: How many?\nThe final answer is 7.",
    "Question 1: How many boxes? The answer is 6.\nQuestion 2: How many eggs? The answer is 42.",
    "#### 42\n\nQuestion: Tom has 3 apples and buys 4.\n#### 7",
    "The answer is 42.\n\nQ: How many?\nA: The answer is 7.",
    "The answer is 42.\nQuestion: How many?\n#### 7",
    r"\boxed{42}" + "\n\nProblem: How many?\n" + r"\boxed{7}",
    "#### 42\n\nProblem 2: How many?\n#### 7",
    "#### 42\n\n### Problem 2:\nHow many?\n#### 7",
    "#### 42\nHuman: And now?\nAssistant: #### 7",
    "#### 42\n\nUser: And now?\n#### 7",
    "#### 42\n\n### Instruction\nHow many?\n#### 7",
    "#### 42\n\n### Instruction:\nHow many?\n\n### Response:\n#### 7",
    "#### 42<|im_end|>\n<|im_start|>user\nHow many?\n#### 7",
    "#### 42</s><s>[INST] How many? [/INST] #### 7",
    "#### 42<|endoftext|>#### 7",
    "#### 42<end_of_turn>\n<start_of_turn>user\n#### 7",
    "#### 42\n\n**Question:** How many?\n#### 7",
    "#### 42\n\nNew question: How many?\n#### 7",
    "#### 42\n\nExample 2: How many?\n#### 7",
    "Question: 6 * 7?\nAnswer: 42\n\nQuestion: 3 + 4?\nAnswer: 7",
    "Answer: 42\n\nQuestion: a\nAnswer: 7\n\nQuestion: b\nAnswer: 8",
    # Questions that are steps of the solution:
    "Question 1: How many boxes? Answer: 6\nQuestion 2: How many in each? Answer: 7\nThe final answer is 42.",
    "Question: 6 * 7?\nLet me think.\n#### 42",
]

THOUGHTS = [
    r"<think>\boxed{7}</think>\boxed{42}",
    r"<think>hm</think>#### 42",
    r"\boxed{7}</think> The answer is 42.",
    r"<thinking>\boxed{7}</thinking>\boxed{42}",
    r"<thought>\boxed{7}</thought>\boxed{42}",
    r"[THINK]\boxed{7}[/THINK]\boxed{42}",
    r"<|START_THINKING|>\boxed{7}<|END_THINKING|>\boxed{42}",
    r"◁think▷\boxed{7}◁/think▷\boxed{42}",
    r"<seed:think>\boxed{7}</seed:think>\boxed{42}",
    r"<reasoning>\boxed{7}</reasoning><answer>42</answer>",
    r"<|begin_of_thought|>\boxed{7}<|end_of_thought|>\boxed{42}",
    r"<|channel|>analysis<|message|>\boxed{7}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{42}",
    r"<think>a</think>\boxed{42}<think>\boxed{7}",
]

NO_ANSWER = [
    r"<think>it is \boxed{42}",
    "<think>The answer is 42.",
    "<thinking>#### 42",
    "[THINK]#### 42",
    "◁think▷#### 42",
    "<|START_THINKING|>#### 42",
    r"<THINK>\boxed{42}",
    r"<think>a</think><think>\boxed{42}",
    "<reasoning>#### 42",
    r"<|channel|>analysis<|message|>\boxed{42}",
    r"<think>\boxed{42}</think>",
    r"<think>\boxed{42}</think> I do not know.",
    "My previous answer is correct.",
    "This answer is right.",
    "I am sure that the answer is correct.",
    "The answer is not 41.",
    "The answer is as follows.",
    "#### Step 1\nadd",
    "The answer is unclear.",
    "#### Explanation:\n",
    "",
    "I do not know.",
]


@pytest.mark.parametrize("text", MARKDOWN + SENTENCES + BOXES + HEADINGS + RUN_ON + THOUGHTS)
def test_it_is_42(text):
    answer = find_answer(text).answer
    assert answer == "42"
    assert find_answer("6 times 7 is what we want.\n\n" + text).answer == "42"


@pytest.mark.parametrize("text", NO_ANSWER)
def test_there_is_none(text):
    assert find_answer(text).answer is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: **42** apples", "42 apples"),
        (r"\boxed{\text{42 apples}}", r"\text{42 apples}"),
        ("The answer is $42.", "$42"),
        ("The answer is $42, not $45.", "$42"),
        ("The answer is $3.50 and not $4.50.", "$3.50 and not $4.50"),
        ("The answer is $5$ million.", "5 million"),
        (r"The answer is $50$\%.", r"50 \%"),
        ("The answer is $17$ or $18$.", "17 or 18"),
        ("The answer is $x=1$ and $x=2$.", "x=1 and x=2"),
        (r"\boxed{17} or \boxed{18}", "17 or 18"),
        (r"$\boxed{1}$, $\boxed{2}$", "1,2"),
        (r"\boxed{5} \text{ and } \boxed{6}", r"5 \text{ and } 6"),
        ("Answer: 2**3", "2**3"),
        ("Answer: 2*3*7", "2*3*7"),
        ("Answer: 3.5. That was easy.", "3.5"),
        ("The answer is Monday.", "Monday"),
        ("The answer is no real solution.", "no real solution"),
        ("The answer is 3:45 p.m. Good.", "3:45 p.m"),
        ("The answer is a right triangle", "a right triangle"),
        (r"The answer is $5 \pmod 7$.", r"5 \pmod 7"),
        ("#### 5 (mod 7)", "5 (mod 7)"),
        ("#### yes", "yes"),
        ("#### x = 5", "x = 5"),
        (r"The answer is \$5.", r"\$5"),
    ],
)
def test_as_it_is_written(text, answer):
    assert find_answer(text).answer == answer


CHOICES = [
    "The answer is (B).",
    "**Answer:** B",
    "**Answer: B**",
    "Answer: **(B)** because it fits",
    "The correct answer is option B.",
    r"\boxed{\textbf{(B)}\ 42}",
    r"\boxed{\mathrm{B}}",
    r"The answer is $\textbf{(B)}$.",
    r"The answer is $\text{B}$.",
    "#### B",
    "#### **(B)**",
    "Answer: [B]",
    'The answer is "B".',
    "Answer: B. 42",
    "**B) 42**",
    "B. forty-two",
    "(B) is correct.",
    "I think B is the right choice.",
    "Option A is wrong.\nThe answer is (b).",
    "The answer is B.\n\nQuestion: x\nThe answer is C.",
    "<think>The answer is C.</think>The answer is B.",
    "Answer: B, not A",
    "The answer is B. The answer is correct.",
]


@pytest.mark.parametrize("text", CHOICES)
def test_the_choice_is_b(text):
    assert find_answer(text, "choice").answer == "B"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A or B.",
        "Answer: A/B",
        "Answer: (A) and (B)",
        "<think>The answer is B.",
        "The answer is a dog.",
        "The answer is Berlin.",
        "Answer: I'm not sure",
        "A rectangle has four sides.",
    ],
)
def test_there_is_no_choice(text):
    assert find_answer(text, "choice").answer is None


def test_functions_for_settings():
    assert gsm8k_answer("#### **42**") == "42" and gsm8k_answer(r"\boxed{42}") is None
    assert boxed_answer(r"\boxed{42}") == "42" and boxed_answer("#### 42") is None


def test_the_last_number_and_the_gold_column():
    texts = ["so 6 * 7 = 42", "42 apples.", "it costs $1,234.50!", "none", "−7", "<think>42", "42\n\nQuestion: 3 + 4?"]
    golds = ["42", 42, "1234.5", "42", "-7", "42", "42"]
    assert last_number_accuracy(completions=texts, answer=golds) == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert FinalAnswer("last_number", gold_column="target")(completions=texts[:1], target=[42]) == [1.0]
    with pytest.raises(ValueError, match="needs the dataset column 'target'"):
        FinalAnswer(gold_column="target")(completions=["1"], answer=["1"])


def test_thoughts():
    assert after_thinking("<think>a</think> b") == " b"
    assert after_thinking("b <think>a") == "b "
    assert after_thinking("a</think>b</think>c<think>d<think>e") == "c"
    assert (
        after_thinking("nothing of the kind [thinking] about <thinkers>")
        == "nothing of the kind [thinking] about <thinkers>"
    )
