"""Strategies against a model that says what the test wrote down: every request, its order, and when they stop."""

from functools import partial

import pytest
from scripted_chat import ScriptedChat

from correction_trl.errors import BadInput
from correction_trl.inference import (
    Problem,
    Trace,
    ask_whether_right,
    best_of_n,
    final_answer,
    gated_revision,
    intrinsic,
    last_number,
    multiple_choice,
    parallel,
    parallel_corrected,
    repair,
    resample,
    run,
    samples_agree,
    self_consistency,
    self_refine,
    whole_text,
    with_feedback,
)
from correction_trl.inference._gated_revision import read_verdict
from correction_trl.inference._self_refine import FEEDBACK, REFINE, STOP_PHRASE
from correction_trl.policy.attempts import SELF_CORRECTION_INSTRUCTION


QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 ="}]
PROBLEM = Problem(QUESTION, {"answer": "4"}, {"enable_thinking": False})


def play(strategy, script, problem=PROBLEM, **settings):
    chat = ScriptedChat(script)
    (trace,) = run([strategy(chat, problem, **settings)])
    return chat, trace


def said(*contents):
    """The conversation that begins with the question, as messages."""
    roles = ["assistant", "user"] * len(contents)
    return QUESTION + [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_intrinsic_self_correction_goes_on_in_one_conversation():
    chat, trace = play(intrinsic, ["5", "44", "4"], turns=3)
    ask = SELF_CORRECTION_INSTRUCTION
    assert chat.asked == [said(), said("5", ask), said("5", ask, "44", ask)]
    assert trace == Trace(
        ["5", "44", "4"], [1, 2, 1], replies=3, stop="last turn", conversations=[said("5", ask, "44", ask, "4")]
    )
    chat, _ = play(intrinsic, ["5", "4"], instruction="Really?")
    assert chat.messages == ["2 + 2 =", "Really?"]
    assert play(intrinsic, ["5"], turns=1)[1].responses == ["5"]


def test_plain_prompts_are_a_users_message():
    chat, _ = play(intrinsic, ["5", "4"], Problem("2 + 2 ="), instruction="Really?")
    assert [m["content"] for m in chat.asked[-1]] == ["2 + 2 =", "5", "Really?"]


class TestSelfRefine:
    def test_feedback_then_refine_until_the_stop_phrase(self):
        chat, trace = play(self_refine, ["5", "2 + 2 is not 5", "4", f"Fine. {STOP_PHRASE.upper()}"])
        assert chat.asked == [
            said(),
            said("5", FEEDBACK),
            said("5", FEEDBACK, "2 + 2 is not 5", REFINE),
            said("5", FEEDBACK, "2 + 2 is not 5", REFINE, "4", FEEDBACK),
        ]
        assert trace.responses == ["5", "4"] and trace.stop == "stop phrase"
        # Feedback counts for the response that it leads to, the last for the one that it leaves
        assert trace.tokens == [1, 14 + 1 + len(f"Fine. {STOP_PHRASE}")] and trace.replies == 4

    def test_the_limit_of_rounds(self):
        chat, trace = play(self_refine, ["5", "no", "6", "no", "7"], rounds=2)
        assert chat.messages == ["2 + 2 =", FEEDBACK, REFINE, FEEDBACK, REFINE]
        assert trace.responses == ["5", "6", "7"] and trace.stop == "last round"

    def test_right_at_once_is_left_alone(self):
        _, trace = play(self_refine, ["4", "there is nothing to correct"])
        assert trace.responses == ["4"] and trace.stop == "stop phrase"

    def test_a_thought_of_the_stop_phrase_does_not_stop(self):
        _, trace = play(self_refine, ["5", f"<think>{STOP_PHRASE}? No.</think>Wrong.", "4"], rounds=1)
        assert trace.responses == ["5", "4"]


class TestWithFeedback:
    def test_what_a_program_says_is_the_follow_up_until_it_says_nothing(self):
        seen = []

        def marks(prompts, completions, answer, **columns):
            text = completions[0][-1]["content"]  # a conversation's completion, as TRL hands it over
            seen.append((prompts, text, answer))
            return ["" if text == answer[0] else f"{text} is not it."]

        _, trace = play(with_feedback, ["5", "6", "4"], feedback_function=marks, turns=5)
        assert trace.responses == ["5", "6", "4"] and trace.stop == "nothing to correct"
        told = [message["content"] for message in trace.conversations[-1] if message["role"] == "user"]
        assert len(told) == 3 and "5 is not it." in told[1] and "6 is not it." in told[2]
        assert seen == [([QUESTION], text, ["4"]) for text in ("5", "6", "4")]

    def test_it_ends_after_its_turns_or_at_the_phrase_of_a_passing_test(self):
        _, trace = play(with_feedback, ["5", "6"], feedback_function=lambda completions, **_: ["no"], turns=2)
        assert trace.responses == ["5", "6"] and trace.stop == "last turn"
        passed = lambda completions, **_: ["All tests passed."]  # noqa: E731
        _, trace = play(with_feedback, ["5"], feedback_function=passed, turns=4)
        assert trace.responses == ["5"] and trace.stop == "nothing to correct"

    def test_feedback_is_data_and_no_format(self):
        braces = lambda completions, **_: ["got {'a': 1}"]  # noqa: E731
        _, trace = play(with_feedback, ["5", "6"], feedback_function=braces)
        assert "got {'a': 1}" in trace.conversations[-1][-2]["content"]
        with pytest.raises(BadInput, match="`follow_up` of the strategy `with_feedback` must hold {feedback}"):
            play(with_feedback, ["5"], feedback_function=braces, follow_up="Again.")


class TestGatedRevision:
    def test_what_the_check_refutes_is_revised_and_the_revision_does_not_see_the_check(self):
        chat, trace = play(
            gated_revision,
            ["5", "WRONG", "4", "Correct."],
            rounds=2,
            check=partial(ask_whether_right, question="Right?"),
            instruction="Again.",
        )
        assert chat.asked == [
            said(),
            said("5", "Right?"),
            said("5", "Again."),
            said("5", "Again.", "4", "Right?"),
        ]
        assert trace.responses == ["5", "4"] and trace.stop == "held"
        assert trace.conversations == [
            said("5", "Again.", "4"),
            said("5", "Right?", "WRONG"),
            said("5", "Again.", "4", "Right?", "Correct."),
        ]

    @pytest.mark.parametrize(("reply", "stop"), [("CORRECT", "held"), ("I cannot tell.", "no verdict")])
    def test_what_is_not_refuted_is_left_alone(self, reply, stop):
        _, trace = play(gated_revision, ["5", reply])
        assert trace.responses == ["5"] and trace.stop == stop and trace.tokens == [1 + len(reply)]

    def test_after_the_last_revision_nothing_is_checked(self):
        chat, trace = play(gated_revision, ["5", "WRONG", "6"])
        assert trace.responses == ["5", "6"] and trace.stop == "last round" and len(chat.asked) == 3

    def test_a_check_by_fresh_samples(self):
        check = partial(samples_agree, samples=3, share=0.6, temperature=0.9)
        chat, trace = play(gated_revision, ["5", "5", "4", "5"], check=check)
        assert chat.asked == [said()] * 4 and trace.stop == "held"
        assert chat.options == [(0.0, 64)] + [(0.9, 64)] * 3
        _, trace = play(gated_revision, ["5", "5", "4", "4", "4"], check=check)
        assert trace.responses == ["5", "4"]

    @pytest.mark.parametrize(
        ("reply", "verdict"),
        [
            ("The answer is wrong at first sight, but it is CORRECT", True),
            ("CORRECT? No: 2 + 2 = 4.\nWRONG", False),
            ("That is not correct.", False),
            ("It is incorrect.", False),
            ("Yes.", True),
            ("<think>wrong</think> right", True),
            ("<think>wrong</think> hm", None),
            ("notcorrected", None),
            ("", None),
        ],
    )
    def test_verdicts(self, reply, verdict):
        assert read_verdict(reply) is verdict


class TestControls:
    def test_self_consistency_takes_the_most_frequent_answer(self):
        chat, trace = play(self_consistency, ["5", "4", "3", "4"], samples=4, temperature=0.8)
        assert chat.asked == [said()] * 4 and chat.options == [(0.8, 64)] * 4 and chat.batches == [4]
        # With fewer samples: one; a tie, where the first wins; a tie of three; the majority
        assert trace.responses == ["5", "5", "5", "4"] and trace.tokens == [1, 1, 1, 1]

    def test_self_consistency_counts_answers_not_words(self):
        script = ["It is 5", "so: 4.0", "hm", "well, it is 4"]
        _, trace = play(self_consistency, script, samples=4, extract_answer=last_number)
        assert trace.responses == ["It is 5", "It is 5", "It is 5", "so: 4.0"]
        assert play(self_consistency, ["a", "b"], extract_answer=last_number)[1].responses == ["a", "a"]

    def test_best_of_n_takes_the_best_by_the_value_function(self):
        seen = []

        def value(prompts, completions, answer):
            seen.append((prompts, [c[0]["content"] for c in completions], answer))
            return [None if c[0]["content"] == "?" else float(c[0]["content"] == a) for c, a in
                    zip(completions, answer, strict=True)]  # fmt: skip

        chat, trace = play(best_of_n, ["?", "5", "4", "4"], samples=4, value_function=value)
        assert chat.asked == [said()] * 4 and chat.options == [(0.7, 64)] * 4
        assert seen == [([QUESTION] * 4, ["?", "5", "4", "4"], ["4"] * 4)]
        assert trace.responses == ["?", "5", "4", "4"] and trace.tokens == [1] * 4

    def test_resampling_never_shows_the_first_attempt(self):
        chat, trace = play(resample, ["5", "44", "4"], turns=3, temperature=0.9)
        assert chat.asked == [said()] * 3 and chat.options == [(0.0, 64), (0.9, 64), (0.9, 64)]
        assert trace.responses == ["5", "44", "4"] and trace.tokens == [1, 2, 1]

    def test_only_the_oracle_sees_the_gold_answer(self):
        class Columns(dict):
            def __getitem__(self, key):
                raise AssertionError("looked at the gold answer")

            items = values = get = __iter__ = __getitem__

        problem = Problem(QUESTION, Columns(answer="4"))
        for strategy in (intrinsic, self_refine, gated_revision, self_consistency, resample):
            play(strategy, lambda messages: "WRONG", problem)
        with pytest.raises((AssertionError, TypeError)):
            play(best_of_n, lambda messages: "4", problem, value_function=lambda **_: [1.0] * 2)


class TestRun:
    def test_replies_are_asked_for_together_across_turns_and_strategies(self):
        chat = ScriptedChat(lambda messages: "WRONG" if messages[0]["content"] == "odd" else "CORRECT")
        problems = [Problem("odd" if i % 2 else "even") for i in range(6)]
        askings = [gated_revision(chat, problem) for problem in problems[:4]]
        askings += [intrinsic(chat, problem) for problem in problems[4:]]
        ended = []
        traces = run(iter(askings), on_end=lambda index, trace: ended.append((index, trace.stop)))
        # Six first attempts; four checks and two second attempts; two revisions
        assert chat.batches == [6, 6, 2]
        assert [len(trace.responses) for trace in traces] == [1, 2, 1, 2, 2, 2]
        assert sorted(ended) == list(enumerate(["held", "last round", "held", "last round", "last turn", "last turn"]))

    def test_the_window_is_filled_again_as_problems_end(self):
        chat = ScriptedChat(lambda messages: "x")
        lengths = [3, 1, 1, 1, 2]
        traces = run((intrinsic(chat, Problem("p"), turns=turns) for turns in lengths), window=2)
        assert [len(trace.responses) for trace in traces] == lengths
        assert chat.batches == [2, 2, 2, 1, 1]

    def test_several_models(self):
        first, second = ScriptedChat(lambda _: "one"), ScriptedChat(lambda _: "two")

        def both(chat, problem):
            trace = Trace()
            trace.answer(" ".join((yield [trace.open(first, "a"), trace.open(second, "b")])))
            return trace.end("")

        traces = run([both(first, PROBLEM), both(first, PROBLEM)])
        assert [trace.responses for trace in traces] == [["one two"]] * 2
        assert first.batches == second.batches == [2]

    def test_a_problem_without_a_reply_costs_itself_alone(self, caplog):
        chat = ScriptedChat(lambda messages: None if messages[0]["content"] == "bad" else "x")
        ended = []
        traces = run([intrinsic(chat, Problem(p)) for p in ("a", "bad", "b")], on_end=lambda i, _: ended.append(i))
        assert [trace and trace.responses for trace in traces] == [["x", "x"], None, ["x", "x"]]
        assert ended == [0, 2] and "the script ends here" in caplog.text

    def test_asking_twice_in_a_row_is_a_mistake(self):
        def eager(chat, problem):
            talk = Trace().open(chat, problem.prompt)
            yield talk
            yield talk

        with pytest.raises(RuntimeError, match="asked for a reply twice"):
            run([eager(ScriptedChat(["a", "b"]), PROBLEM)])

    def test_cut_off_replies_are_counted(self):
        _, trace = play(intrinsic, ["a…", "b"])
        assert trace.cut_off == 1 and trace.replies == 2

    def test_a_trace_survives_a_line_of_json(self):
        _, trace = play(self_refine, ["5", "no", "4", STOP_PHRASE])
        assert Trace(**trace.to_dict()) == trace


@pytest.mark.parametrize(
    ("function", "response", "answer"),
    [
        (whole_text, " 4 ", "4"),
        (whole_text, " ", None),
        (final_answer, r"So \boxed{18.0}.", "18"),
        (final_answer, "The final answer is $18$. I hope it is correct.", "18"),
        (final_answer, r"<think>\boxed{3}</think> #### 1,800", "1800"),
        (final_answer, "I do not know.", None),
        (last_number, "3 apples and 4, so **$7.50**.", "15/2"),
        (last_number, "none", None),
        (multiple_choice, "The answer is (B).", "B"),
    ],
)
def test_answers_in_one_writing(function, response, answer):
    assert function(response) == answer


class TestTheInferenceComputeCurve:
    def test_the_majority_of_each_budget_of_first_attempts(self):
        chat, trace = play(parallel, list("34533333"), samples=8, temperature=0.9)
        assert trace.responses == ["3", "3", "3"] and trace.replies == 8 and trace.tokens == [2, 2, 4]
        assert chat.options == [(0.9, 64)] * 8 and all(len(messages) == 2 for messages in chat.asked)
        assert play(parallel, list("5444"), samples=4)[1].responses == ["5", "4"]

    def test_half_as_many_are_corrected_once_each_and_the_second_attempts_vote(self):
        chat, trace = play(parallel_corrected, [*"1111", *"5344"], samples=8, instruction="Again?")
        assert trace.responses == ["5", "5", "4"]  # of one, two and four second attempts
        assert trace.replies == 8 and trace.tokens == [2, 2, 4] and chat.batches == [4, 4]
        assert chat.messages[4:] == ["Again?"] * 4

    def test_answers_are_counted_and_not_words(self):
        said = ["no", r"It is \boxed{4}.", r"So \boxed{5}.", r"\boxed{4.0}"]
        assert play(parallel, list(said), samples=4, extract_answer=final_answer)[1].responses == said[1:2] * 2

    @pytest.mark.parametrize("samples", [2, 12])
    def test_a_budget_that_is_no_power_of_two_is_refused(self, samples):
        with pytest.raises(BadInput, match=f"a power of two from 4 on, got {samples}"):
            play(parallel, ["4"] * samples, samples=samples)


class TestRepair:
    def test_the_stored_attempt_is_the_models_own_first_reply(self):
        problem = Problem(QUESTION, {"answer": "4", "draft": "5"})
        settings = {"attempt_column": "draft", "turns": 3, "instruction": "Again?"}
        chat, trace = play(repair, ["3", "4"], problem, **settings)
        assert trace.responses == ["5", "3", "4"] and trace.tokens == [0, 1, 1] and trace.replies == 2
        assert [message["content"] for message in chat.asked[0]] == ["Be brief.", "2 + 2 =", "5", "Again?"]

    def test_after_a_plain_prompt(self):
        chat, _ = play(repair, ["4"], Problem("2 + 2 = ", {"first_attempt": "5"}), instruction="Again?")
        assert chat.messages == ["2 + 2 = 5\n\nAgain?\n\n"]

    @pytest.mark.parametrize("attempt", [None, " "])
    def test_a_row_without_one_is_a_sentence(self, attempt):
        with pytest.raises(BadInput, match="stored attempt in the column 'first_attempt' .*are first_attempt"):
            play(repair, ["4"], Problem(QUESTION, {"first_attempt": attempt}))
