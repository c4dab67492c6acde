"""Transcripts of two attempts and the pairs made of them, for text and for images."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from helpers import build_model, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vision_models import build_gemma3, build_llava, image_problems, odd_number_of_letters
from transformers import AutoModelForCausalLM, AutoTokenizer

from correction_trl import CorrectionOptimizationConfig, CorrectionOptimizationTrainer
from correction_trl.carry_addition import embedded_path, exact_match
from correction_trl.errors import BadInput
from correction_trl.evaluation import evaluate_attempts
from correction_trl.self_correction_dpo.pairs import Transcript, evaluate_transcripts, make_pairs, sample_transcripts


ASK = "again."


def transcript(first="5", second="4", values=(0.0, 1.0), row=0, **changes):
    """One whose ids are made up: 1x the prompt, 2x the first answer, 3x the second, 9 the end."""
    made = Transcript(
        row=row,
        prompt=[{"role": "user", "content": "2+2?"}],
        first=first,
        second=second,
        first_value=values[0],
        second_value=values[1],
        prompt_ids=[11, 12],
        first_ids=[20 + len(first), 9],
        follow_up_ids=[7, 8],
        second_ids=[30 + len(second), 9],
        first_complete=True,
        second_complete=True,
    )
    return replace(made, **changes)


class TestPairs:
    def test_the_right_answer_is_preferred(self):
        pairs, counts = make_pairs([transcript(), transcript("4", "55", (1.0, 0.0), row=1)])
        assert pairs["transition"] == ["i->c", "c->i"]
        assert (pairs["response"], pairs["correction"]) == (["5", "55"], ["4", "4"])
        assert pairs["prompt"] == [[{"role": "user", "content": "2+2?"}]] * 2
        assert pairs["prompt_ids"] == [[11, 12], [11, 12]]
        assert pairs["rejected_ids"] == [[21, 9], [32, 9]] and pairs["chosen_ids"] == [[31, 9], [21, 9]]
        assert counts["pairs"] == counts["i->c"] + counts["c->i"] == 2

    def test_in_the_context_of_both_turns(self):
        pairs, _ = make_pairs([transcript()], "two_turns", instruction=ASK)
        (pair,) = pairs
        assert [message["content"] for message in pair["prompt"]] == ["2+2?", "5", ASK]
        assert [message["role"] for message in pair["prompt"]] == ["user", "assistant", "user"]
        # The first answer is what was sampled, and stands once in the prompt and once as the answer not to repeat
        assert pair["prompt_ids"] == [11, 12, 21, 9, 7, 8]
        assert (pair["rejected_ids"], pair["chosen_ids"]) == ([21, 9], [31, 9])
        pairs, counts = make_pairs([transcript(prompt="2+2?")], "both", instruction=ASK)
        assert pairs["prompt"] == ["2+2?", f"2+2?5\n\n{ASK}\n\n"] and counts["pairs"] == 2

    @settings(max_examples=15)
    @given(st.lists(st.tuples(*[st.sampled_from([None, 0.0, 0.4, 1.0])] * 2), max_size=20))
    def test_everything_is_counted(self, values):
        transcripts = [transcript(values=pair, row=i) for i, pair in enumerate(values)]
        differ = [None not in pair and (pair[0] >= 0.4) != (pair[1] >= 0.4) for pair in values]
        if not any(differ):
            with pytest.raises(BadInput, match="No transcript makes a pair"):
                make_pairs(transcripts, correct_threshold=0.4)
            return
        pairs, counts = make_pairs(transcripts, correct_threshold=0.4)
        kinds = ("i->c", "c->i", "c->c", "i->i", "unjudged")
        assert sum(counts[kind] for kind in kinds) == counts["transcripts"] == len(values)
        assert counts["unjudged"] == sum(None in pair for pair in values)
        assert counts["pairs"] == len(pairs) == sum(differ)

    def test_what_cannot_be_trained_on_is_left_out_and_counted(self):
        _, counts = make_pairs(
            [
                transcript(row=0),
                transcript(row=0),
                transcript(row=1, second_complete=False),  # would teach never to stop
                transcript(row=2, first_complete=False),  # only the answer not to give
                transcript(first=" ", row=3),
            ]
        )
        assert (counts["repeated"], counts["cut_off"], counts["empty"], counts["pairs"]) == (1, 1, 1, 2)

    def test_without_a_pair_it_says_what_there_was(self):
        with pytest.raises(BadInput, match=r"transcripts 2, c->c 1, i->i 1\)"):
            make_pairs([transcript(values=(0.0, 0.0)), transcript(values=(1.0, 1.0))])

    def test_an_unknown_prompt_is_refused(self):
        with pytest.raises(BadInput, match="question, two_turns, both"):
            make_pairs([transcript()], "answer")


@pytest.fixture(scope="module")
def embedded():
    path = embedded_path("tiny-carry-chat")
    data = Dataset.from_parquet(f"{embedded_path('carry_addition')}/validation.parquet").select(range(20))
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path), data


def first_is_a_letter(completions, **columns):
    return [float(text[:1].isalpha()) for text in completions]


class TestSampling:
    INSTRUCTION = "There might be an error in the answer above. Please correct it."

    def test_transcripts_are_the_sampled_ids_in_the_order_of_the_dataset(self, embedded):
        model, tokenizer, data = embedded
        settings = {"n_samples": 2, "max_completion_length": 16, "batch_size": 15}
        sampled = sample_transcripts(model, tokenizer, data, exact_match, self.INSTRUCTION, **settings)
        assert [t.row for t in sampled] == [row for row in range(20) for _ in range(2)]
        assert any(a.first != b.first for a, b in zip(sampled[::2], sampled[1::2], strict=True))
        for t in sampled:
            assert tokenizer.decode(t.first_ids, skip_special_tokens=True) == t.first
            assert t.first_value == float(t.first == data[t.row]["answer"])
            assert t.second_value == float(t.second == data[t.row]["answer"])
            assert t.first_complete == (t.first_ids[-1] == tokenizer.eos_token_id)
            conversation = [
                *t.prompt,
                {"role": "assistant", "content": t.first},
                {"role": "user", "content": self.INSTRUCTION},
            ]
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            assert t.prompt_ids + t.first_ids + t.follow_up_ids == ids
        again = sample_transcripts(model, tokenizer, data, exact_match, self.INSTRUCTION, **settings)
        assert again == sampled
        other = sample_transcripts(model, tokenizer, data, exact_match, self.INSTRUCTION, **settings, seed=1)
        assert other != sampled

    def test_their_evaluation_is_that_of_evaluate_attempts(self, embedded):
        model, tokenizer, data = embedded
        settings = {"temperature": 0.0, "max_completion_length": 16, "batch_size": 20}
        transcripts = sample_transcripts(model, tokenizer, data, exact_match, self.INSTRUCTION, **settings)
        expected = evaluate_attempts(model, tokenizer, data, exact_match, self.INSTRUCTION, **settings)
        found = evaluate_transcripts(data, transcripts, exact_match)
        assert found.per_problem == expected.per_problem
        assert found.metrics["acc@t1"]["mean"] == sum(t.first_value for t in transcripts) / 20

    def test_plain_prompts_and_generation_settings(self, plain_prompts):
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
        sampled = sample_transcripts(
            model, tokenizer, plain_prompts, first_is_a_letter, ASK, generation_kwargs={"top_k": 1},
            max_completion_length=8,
        )  # fmt: skip
        greedy = sample_transcripts(
            model, tokenizer, plain_prompts, first_is_a_letter, ASK, temperature=0.0, max_completion_length=8
        )
        assert [t.second_ids for t in sampled] == [t.second_ids for t in greedy]
        assert tokenizer.decode(greedy[0].follow_up_ids).strip("\n<unk>") == ASK
        with pytest.raises(BadInput, match="'top_q'"):
            sample_transcripts(model, tokenizer, plain_prompts, first_is_a_letter, generation_kwargs={"top_q": 1})


def config(tmp_path, **settings):
    return CorrectionOptimizationConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, bf16=False,
        gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
        disable_tqdm=True, max_completion_length=16, **settings,
    )  # fmt: skip


def test_pairs_are_trained_on_as_the_ids_that_were_sampled(tmp_path):
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # Ids that no text is tokenised to (an end of sequence inside), and an answer that was cut off
    odd = [6, tokenizer.eos_token_id, 7, tokenizer.eos_token_id]
    pairs, _ = make_pairs(
        [transcript(prompt_ids=[1, 4, 8, 2, 5], first_ids=[9, 10], second_ids=odd, first_complete=False)]
    )
    trainer = CorrectionOptimizationTrainer(str(tmp_path), config(tmp_path, max_length=None), train_dataset=pairs)
    (row,) = trainer.train_dataset
    assert (row["prompt_ids"], row["rejected_ids"], row["chosen_ids"]) == ([1, 4, 8, 2, 5], [9, 10], odd)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert (entry["lengths/response"], entry["lengths/correction"]) == (2, 4)
    ids = torch.tensor([[1, 4, 8, 2, 5, 9, 10]])
    logps = build_model(tokenizer)(ids).logits[0, 4:6].log_softmax(-1)
    assert entry["logps/response"] == pytest.approx(float(logps[0, 9] + logps[1, 10]), rel=1e-4)


class TestImages:
    @pytest.mark.parametrize("build", [build_llava, build_gemma3])
    def test_both_turns_see_the_image(self, build):
        model, processor = build()
        problems = image_problems(6)
        settings = {"temperature": 0.0, "max_completion_length": 10, "batch_size": 4}
        found = sample_transcripts(model, processor, problems, odd_number_of_letters, ASK, **settings)
        reserved = processor.image_token_ids[0]
        for t in found:
            assert t.prompt_ids.count(reserved) >= 1 and reserved not in t.first_ids + t.second_ids
            assert f"{ASK}<eos><assistant>" in processor.tokenizer.decode(t.follow_up_ids)
            # What the model says to these very ids with this image, without batch or padding
            image = problems[t.row]["image"]
            inputs = processor.image_processor(images=[[image]], return_tensors="pt")
            ids = torch.tensor([t.prompt_ids + t.first_ids + t.follow_up_ids + t.second_ids])
            kwargs = {"token_type_ids": (ids == reserved).long()} if build is build_gemma3 else {}
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=inputs["pixel_values"], **kwargs).logits[0]
            logits[:, reserved] = -torch.inf
            n_second = len(t.second_ids)
            assert logits[-n_second - 1 : -1].argmax(-1).tolist() == t.second_ids
        # The same questions about other images are answered differently
        images = [{"image": image} for image in problems["image"]]
        turned = concatenate_datasets(
            [problems.remove_columns("image"), Dataset.from_list(images[3:] + images[:3])], axis=1
        )
        settings["temperature"] = 2.0
        one, other = (
            sample_transcripts(model, processor, data, odd_number_of_letters, ASK, **settings)
            for data in (problems, turned)
        )
        assert [t.second_ids for t in one] != [t.second_ids for t in other]

    @pytest.mark.parametrize(
        ("build", "column"), [(build_llava, "image"), (build_llava, "images"), (build_gemma3, "image")]
    )
    def test_pairs_with_images_go_through_the_pair_trainer(self, build, column, tmp_path):
        model, processor = build()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        problems = image_problems(16, column)
        found = sample_transcripts(
            model,
            processor,
            problems,
            odd_number_of_letters,
            ASK,
            n_samples=3,
            temperature=2.0,
            max_completion_length=80,
        )
        pairs, counts = make_pairs(found, "both", instruction=ASK, images=problems)
        assert counts["pairs"] == len(pairs) >= 4 and "chosen_ids" not in pairs.column_names
        trainer = CorrectionOptimizationTrainer(str(tmp_path), config(tmp_path, max_length=None), train_dataset=pairs)
        batch = next(iter(trainer.get_train_dataloader()))
        image_tokens = (batch["input_ids"] == processor.image_token_ids[0]).sum(1)
        assert len(image_tokens) == 8 and (image_tokens > 0).all()  # two rows per pair, each with its image
        trainer.train()
        assert not torch.equal(model.lm_head.weight, trainer.model.lm_head.weight)
        assert all(entry["loss"] < 1e4 for entry in trainer.state.log_history if "loss" in entry)

    def test_own_column_names_and_plain_answers_are_accepted(self, tmp_path):
        model, processor = build_llava()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        pairs = image_problems(4).remove_columns("answer")
        pairs = pairs.add_column("response", ["red."] * 4).add_column("correction", ["blue."] * 4)
        trainer = CorrectionOptimizationTrainer(str(tmp_path), config(tmp_path, max_length=None), train_dataset=pairs)
        trainer.train()
        assert trainer.state.log_history[0]["lengths/correction"] == len("blue.") + 1  # and the end of the turn

    def test_what_cannot_be_done_with_images_is_said(self, tmp_path, tiny_tokenizer):
        model, processor = build_llava()
        problems = image_problems(2)
        with pytest.raises(BadInput, match="a tokenizer and no processor"):
            sample_transcripts(model, tiny_tokenizer, problems, odd_number_of_letters, ASK)
        plain = problems.remove_columns("prompt").add_column("prompt", ["color?"] * 2)
        with pytest.raises(BadInput, match="must be conversational"):
            sample_transcripts(model, processor, plain, odd_number_of_letters, ASK)
        with pytest.raises(BadInput, match="sampled from text alone"):
            CorrectionOptimizationTrainer(
                model,
                config(tmp_path),
                train_dataset=problems,
                teacher=lambda prompts, responses, **columns: responses,
                processing_class=processor,
            )
