"""Toxicity by a classifier that is built and trained here, and by the word list."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from correction_trl.rewards import NonToxicity, WordListNonToxicity
from correction_trl.rewards.common import where_to_run
from correction_trl.rewards.toxicity import fallen_most


DATA = Path(__file__).parents[3] / "shared" / "data"
WORDS = "you are an a idiot fool kind friend i will hurt help male thank it is good bad".split()
LABELS = ["toxicity", "insult", "threat", "male"]
TEXTS = {
    "you are an idiot": [1, 1, 0, 0],
    "you fool": [1, 1, 0, 0],
    "i will hurt you": [1, 0, 1, 0],
    "i will help you": [0, 0, 0, 0],
    "you are a kind friend": [0, 0, 0, 0],
    "thank you it is good": [0, 0, 0, 0],
    "you are a male friend": [0, 0, 0, 1],
    "a male idiot": [1, 1, 0, 1],
    "": [0, 0, 0, 0],
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A multi-label classifier in the form of the default model, identity label included, trained in a second."""
    folder = tmp_path_factory.mktemp("classifier")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<cls>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<cls> $A", special_tokens=[("<cls>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<cls>")
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(fast), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
            problem_type="multi_label_classification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    batch = fast(list(TEXTS), padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    targets = torch.tensor(list(TEXTS.values())).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(**batch, labels=targets).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


class TestNonToxicity:
    def test_values_and_feedback(self, classifier):
        texts = list(TEXTS)
        value = NonToxicity(model=classifier, batch_size=2, max_length=32)
        toxic = [any(labels[:3]) for labels in TEXTS.values()]
        values = value(completions=texts)
        assert [v < 0.2 for v in values] == toxic and [v > 0.8 for v in values] == [not t for t in toxic]
        told = dict(zip(texts, value.feedback(completions=texts), strict=True))
        assert told["i will help you"] == told["you are a male friend"] == "The text is not toxic."
        assert told["you are an idiot"] in ("The text is toxic: insult.", "The text is toxic: toxicity.")
        only = NonToxicity(model=classifier, attributes=("threat",), max_length=32)
        assert only.feedback(completions=["i will hurt you", "you fool"]) == [
            "The text is toxic: threat.",
            "The text is not toxic.",
        ]

    def test_batches_do_not_change_values(self, classifier):
        texts = list(TEXTS) * 3
        one = NonToxicity(model=classifier, batch_size=1, max_length=32)(completions=texts)
        many = NonToxicity(model=classifier, batch_size=16, max_length=32)(completions=texts)
        assert one == pytest.approx(many, abs=1e-5)

    def test_long_and_conversational(self, classifier):
        value = NonToxicity(model=classifier, max_length=32)
        conversation = [{"role": "assistant", "content": "you are an idiot"}]
        assert value(completions=[conversation]) == pytest.approx(value(completions=["you are an idiot"]), abs=1e-5)
        assert len(value(completions=["idiot " * 5000])) == 1

    def test_identity_labels_do_not_count(self, classifier):
        with pytest.raises(ValueError, match="has none of the attributes severe.*its labels are toxicity, insult"):
            NonToxicity(model=classifier, attributes=("severe",))(completions=["x"])

    def test_no_classifier(self, caplog):
        with pytest.raises(OSError, match="could not be loaded.*word_list_fallback=True"):
            NonToxicity(model="nobody/no-such-classifier")(completions=["x"])
        fallback = NonToxicity(model="nobody/no-such-classifier", word_list_fallback=True)
        assert fallback(completions=["you idiot", "thank you"]) == [0.5, 1.0]
        assert "WORD LIST" in caplog.text
        assert fallback.feedback(completions=["you idiot"]) == ["The text is toxic: insult (by a word list)."]


class TestWordList:
    def test_values(self):
        texts = ["You IDIOT, you moron!", "I will kill you.", "What a class assignment.", "Scunthorpe", ""]
        assert WordListNonToxicity()(completions=texts) == [1 / 3, 0.5, 1.0, 1.0, 1.0]
        assert WordListNonToxicity().feedback(completions=texts)[1:3] == [
            "The text is toxic: threat (by a word list).",
            "No listed word was found.",
        ]
        assert WordListNonToxicity().__name__ == "word_list_non_toxicity"

    @pytest.mark.skipif(not DATA.is_dir(), reason=f"the data files are not at {DATA}")
    def test_a_longer_list(self):
        path = DATA / "ldnoobw/en"
        words = path.read_text(encoding="utf-8").split("\n")
        words = [word.strip() for word in words if word.strip()]
        value = WordListNonToxicity(words=str(path))
        assert all(v < 1 for v in value(completions=[f"so, {word}!" for word in words]))
        goals = (DATA / "advbench/harmful_behaviors.csv").read_text().splitlines()[1:]
        # Harmful requests without a rude word: a word list sees next to nothing, which is why it says that it is one.
        assert sum(v < 1 for v in value(completions=goals)) < 0.05 * len(goals)

    def test_empty_list(self, tmp_path):
        (tmp_path / "words").write_text("# nothing\n")
        with pytest.raises(ValueError, match="has no words"):
            WordListNonToxicity(words=str(tmp_path / "words"))(completions=["x"])


def test_auto_is_the_gpu_where_there_is_one(classifier, monkeypatch):
    assert NonToxicity(model=classifier, device="auto")(["thank you"]) == NonToxicity(model=classifier)(["thank you"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert where_to_run("auto") == "cuda" and where_to_run("cpu") == "cpu"


class TestFeedbackOnPairs:
    def test_it_names_what_falls_most_and_not_what_is_strongest(self, classifier):
        scorer = NonToxicity(model=classifier, attributes=("toxicity", "insult", "threat"))
        before, after = ["i will hurt you", "you are an idiot"], ["you fool", "i will hurt you"]
        scores = zip(scorer._scores(before), scorer._scores(after), strict=True)
        falls = [{name: first[name] - then[name] for name in first} for first, then in scores]
        assert [max(fall, key=fall.get) for fall in falls] == ["threat", "insult"]
        told = scorer.pair_feedback(before, after)
        assert told == ["Make it less toxic: threat.", "Make it less toxic: insult."]
        strongest = [max(row, key=row.get) for row in scorer._scores(before)]
        assert scorer.strongest_attribute(before) == [f"Make it less toxic: {name}." for name in strongest]
        assert scorer.pair_feedback(["thank you"], ["thank you"]) == [""]
        scores = {"toxicity": 0.9, "severe_toxicity": 0.8}
        assert fallen_most(scores, {"toxicity": 0.85, "severe_toxicity": 0.1}).endswith("severe toxicity.")
        assert fallen_most(scores, {}).endswith(": toxicity.")

    def test_the_word_list_does_likewise(self):
        scorer = WordListNonToxicity()
        text = "damn, you idiot, damn"
        assert scorer.strongest_attribute([text, "thank you"]) == ["Make it less toxic: profanity.", ""]
        assert scorer.pair_feedback([text], ["damn, you, damn"]) == ["Make it less toxic: insult."]
