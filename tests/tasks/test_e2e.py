"""E2E's pack: the form of the Hub and of the challenge's files."""

import pytest
from datasets import Dataset

from correction_trl.data_utils import load_split
from correction_trl.errors import BadInput
from correction_trl.tasks import e2e


MEANING = "name[The Eagle], food[Japanese], familyFriendly[yes]"
WHOLE, PART = "The Eagle serves Japanese food and welcomes children.", "The Eagle is a nice place."


@pytest.mark.parametrize(
    "columns", [("meaning_representation", "human_reference"), ("meaning_representation", "target"), ("mr", "ref")]
)
def test_each_published_form_gives_the_same_rows(columns):
    rows = e2e.problems(Dataset.from_dict(dict(zip(columns, [[MEANING, MEANING], [WHOLE, PART]], strict=True))))
    assert len(rows) == 1 and rows[0]["references"] == [WHOLE, PART]
    assert MEANING in rows[0]["prompt"][0]["content"]


def test_the_challenges_csv_and_the_table(tmp_path):
    (tmp_path / "test.csv").write_text(f'mr,ref\n"{MEANING}","{WHOLE}"\n')
    rows = load_split(str(tmp_path / "test.csv"), None, "test", data_function=e2e.problems)
    found = e2e.table(rows["prompt"], [[WHOLE, PART]], meaning_representation=rows["meaning_representation"])
    assert found == {"coverage": [pytest.approx((1 + 1 / 3) / 2)], "all_covered": [0.5]}
    assert "food[Japanese]" in e2e.missing(completions=[PART], meaning_representation=[MEANING])[0]


def test_another_file_is_a_sentence():
    with pytest.raises(BadInput, match="no data of E2E: the columns are question"):
        e2e.problems(Dataset.from_dict({"question": ["1 + 1?"]}))
