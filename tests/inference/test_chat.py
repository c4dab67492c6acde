"""Conversations with a model in this process, and with one behind a server."""

import pytest
import torch
from datasets import load_dataset
from helpers import build_model, build_tokenizer
from misbehaving_server import FAULTS, plan, running
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.errors import BadInput, TeacherFailed
from correction_trl.evaluation import evaluate_attempts, evaluate_traces
from correction_trl.inference import (
    Conversation,
    LocalChat,
    Problem,
    ServerChat,
    Trace,
    gated_revision,
    intrinsic,
    run,
    self_consistency,
)


KEY = "sk-standin-key-that-must-never-be-shown-0123456789"


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return build_model(tiny_tokenizer).eval()


def even_length(completions, **_):
    return [float(len(c if isinstance(c, str) else c[0]["content"]) % 2 == 0) for c in completions]


class TestLocalChat:
    @pytest.mark.parametrize("fixture", ["plain_prompts", "chat_prompts"])
    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_intrinsic_self_correction_is_what_evaluate_attempts_does(
        self, model, tiny_tokenizer, fixture, batch_size, request
    ):
        dataset = request.getfixturevalue(fixture).select(range(10))
        chat = LocalChat(model, tiny_tokenizer, max_tokens=6, batch_size=batch_size)
        askings = [intrinsic(chat, Problem(p), turns=3, instruction="correct it.") for p in dataset["prompt"]]
        traces = {(row, 0): trace for row, trace in enumerate(run(askings))}
        expected = evaluate_attempts(
            model,
            tiny_tokenizer,
            dataset,
            even_length,
            "correct it.",
            n_turns=3,
            max_completion_length=6,
            n_examples=10,
        )
        found = evaluate_traces(dataset, traces, even_length, n_examples=10)
        assert found.examples == expected.examples and found.per_problem == expected.per_problem
        assert len({text for example in found.examples for text in example["attempts"]}) > 6

    def test_a_conversation_is_its_ids_and_is_never_rendered_again(self, model, tiny_tokenizer):
        chat = LocalChat(model, tiny_tokenizer, max_tokens=6)
        talk = Conversation(chat, [{"role": "user", "content": "1+1="}])
        chat.reply([talk])
        first = list(talk.ids)
        chat.reply([talk.say("sure?")])
        assert talk.ids[: len(first)] == first
        ended = first[-1] == tiny_tokenizer.eos_token_id
        follow_up = ("" if ended else "<eos>") + "<user>sure?<eos><assistant>"
        appended = tiny_tokenizer(follow_up, add_special_tokens=False)["input_ids"]
        rest = talk.ids[len(first) :]
        assert rest[: len(appended)] == appended
        reply = rest[len(appended) :]
        assert tiny_tokenizer.decode(reply, skip_special_tokens=True) == talk.replies[1]
        prompt = tiny_tokenizer.apply_chat_template(talk.prompt, add_generation_prompt=True, return_dict=True)
        assert talk.tokens == len(first) - len(prompt["input_ids"]) + len(reply)
        assert [m["role"] for m in talk.messages] == ["user", "assistant", "user", "assistant"]

    def test_a_fork_leaves_the_conversation_alone(self, model, tiny_tokenizer):
        chat, counted = LocalChat(model, tiny_tokenizer, max_tokens=4), []
        on_reply = lambda tokens, cut_off: counted.append(tokens)
        talk, alone = (Conversation(chat, "1+1=", on_reply=on_reply) for _ in range(2))
        chat.reply([talk, alone])
        fork = talk.fork().say("right?")
        chat.reply([fork])
        assert talk.ids == alone.ids and talk.messages == alone.messages and len(counted) == 3
        chat.reply([talk.say("again"), alone.say("again")])
        assert talk.ids == alone.ids != fork.ids

    def test_sampling_and_its_seed(self, model, tiny_tokenizer):
        def sample(seed):
            chat = LocalChat(model, tiny_tokenizer, max_tokens=6, seed=seed)
            askings = [self_consistency(chat, Problem("1+1="), samples=4, temperature=1.0) for _ in range(3)]
            return [[talk[-1]["content"] for talk in trace.conversations] for trace in run(askings)]

        torch.manual_seed(0)
        state = torch.get_rng_state()
        samples = sample(1)
        assert torch.get_rng_state().equal(state)
        assert len({text for texts in samples for text in texts}) > 6
        assert sample(1) == samples != sample(2)

    def test_replies_of_different_settings_are_asked_for_together(self, model, tiny_tokenizer):
        chat = LocalChat(model, tiny_tokenizer, max_tokens=3)
        talks = [Conversation(chat, "1+1=", max_tokens=n) for n in (5, 2, 5)]
        talks.append(Conversation(chat, "1+1=", temperature=1.0))
        chat.reply(talks)
        assert [talk.tokens <= n for talk, n in zip(talks, (5, 2, 5, 3), strict=True)] == [True] * 4
        assert talks[0].replies == talks[2].replies and talks[0].replies[0].startswith(talks[1].replies[0])

    def test_the_model_is_left_as_it_was(self, tiny_tokenizer):
        model = build_model(tiny_tokenizer, attention_dropout=0.5).train()
        chat = LocalChat(model, tiny_tokenizer, max_tokens=4)
        first, second = (Conversation(chat, "1+1=") for _ in range(2))
        chat.reply([first])
        chat.reply([second])
        assert first.replies == second.replies and model.training

    def test_a_chat_needs_a_chat_template(self, model):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = None
        chat = LocalChat(model, tokenizer)
        with pytest.raises(BadInput, match="has no chat template"):
            chat.reply([Conversation(chat, [{"role": "user", "content": "1+1="}])])


def make_chat(url, **options):
    return ServerChat("tiny", url, **{"concurrency": 16, "timeout": 1.0, "first_pause": 0.01, **options})


class TestServerChat:
    @pytest.fixture(autouse=True)
    def no_key(self, monkeypatch):
        monkeypatch.delenv("SERVER_API_KEY", raising=False)

    def test_what_goes_wrong_costs_one_problem_and_nothing_is_asked_twice(self, caplog):
        n, share, stubborn = 200, 0.05, 0.2
        faults = [fault for fault in FAULTS if fault not in ("wrong_format", "hang")]
        with running(faults=",".join(faults), share=share, stubborn=stubborn, retry_after=0.01) as server:
            chat = make_chat(server.url, retries=3)
            askings = [intrinsic(chat, Problem(f"item {i}"), turns=2, instruction=f"again item {i}") for i in range(n)]
            traces = run(askings)
            stats = server.stats()
        kinds = {}
        for i, trace in enumerate(traces):
            fault, times = plan(i, faults, share, stubborn)
            kinds.setdefault((fault, times), []).append(i)
            answer = f"Let me see.\n<corrected_response>\nright {i}\n</corrected_response>"
            if fault is None:
                assert trace.responses == [answer] * 2 and trace.tokens == [10, 10] and trace.cut_off == 0
                assert stats["asked"][i] == 2
            elif fault in ("empty", "truncated"):  # replies all the same: evaluated as they are
                assert trace.responses[0] == ("" if fault == "empty" else answer[:25])
                assert (trace.cut_off > 0) == (fault == "truncated")
            elif times == float("inf"):
                assert trace is None
            else:
                assert trace.responses == [answer] * 2
        assert len(kinds) > 8 and None in traces, "every fault should befall some problem"
        assert caplog.text.count("has no result") == traces.count(None)

    def test_no_more_requests_at_a_time_than_allowed(self):
        with running(latency=0.01) as server:
            chat = make_chat(server.url, concurrency=4)
            run([intrinsic(chat, Problem(f"item {i}"), turns=1) for i in range(40)])
            assert server.stats()["most_at_once"] == 4

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"status": 401}, "The server refused the request"),
            ({"status": 404}, "check `server_base_url`"),
        ],
    )
    def test_a_server_that_refuses_ends_the_run_with_one_sentence(self, monkeypatch, options, sentence):
        monkeypatch.setenv("SERVER_API_KEY", KEY)
        with running(**options) as server:
            chat = make_chat(server.url, api_key_variable="SERVER_API_KEY")
            with pytest.raises(TeacherFailed) as stopped:
                run([intrinsic(chat, Problem("item 1"))])
        assert sentence in str(stopped.value) and "teacher" not in str(stopped.value).lower()
        assert KEY not in str(stopped.value) and "\n" not in str(stopped.value)

    def test_a_server_that_is_not_there(self):
        chat = make_chat("http://127.0.0.1:9/v1", retries=0)
        with pytest.raises(TeacherFailed, match="The server http://127.0.0.1:9/v1 has given no answer"):
            run([intrinsic(chat, Problem("item 1"))])
        with pytest.raises(BadInput, match="The server's address"):
            ServerChat("tiny", "localhost:8000")

    @pytest.mark.slow
    def test_a_real_server_gives_what_the_model_in_this_process_gives(self, transformers_serve):
        path = embedded_path("tiny-carry-chat")
        problems = load_dataset(embedded_path("carry_addition"), split="test[:6]")
        tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
        instruction = "There might be an error in the answer above. Please correct it."

        def solve(chat) -> list[Trace]:
            check = lambda chat, trace, problem, response, talk: iter(())  # returns None: no verdict
            askings = [intrinsic(chat, Problem(prompt), instruction=instruction) for prompt in problems["prompt"]]
            askings += [gated_revision(chat, Problem(prompt), check=check) for prompt in problems["prompt"]]
            return run(askings)

        local = solve(LocalChat(model, tokenizer, max_tokens=16))
        served = solve(ServerChat(path, transformers_serve, max_tokens=16, concurrency=4))
        assert [trace.responses for trace in served] == [trace.responses for trace in local]
        assert [trace.stop for trace in served] == ["last turn"] * 6 + ["no verdict"] * 6
        assert all(trace.cut_off == 0 and trace.replies == len(trace.responses) for trace in served)
        found, expected = (
            evaluate_traces(problems, {(row, 0): trace for row, trace in enumerate(traces[:6])}, exact_match)
            for traces in (served, local)
        )
        assert found.right == expected.right
        assert sum(trace.tokens[0] for trace in served) > 0
