"""Concept and slot coverage."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correction_trl.rewards import ConceptCoverage, SlotCoverage
from correction_trl.rewards.constraints import E2E_WAYS, concept_list, covers, slot_list


DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data files are not at {DATA}")


class TestConcepts:
    @needs_data
    def test_commongen_references(self):
        """993 concept sets with 4018 references: nearly everything is covered; other sets' concepts are not."""
        data = [json.loads(line) for line in (DATA / "commongen/commongen.dev.jsonl").read_text().splitlines()]
        scenes = [scene for row in data for scene in row["scene"]]
        concepts = [row["concept_set"] for row in data for _ in row["scene"]]
        values = ConceptCoverage()(completions=scenes, concepts=concepts)
        assert len(values) == 4018 and sum(values) / len(values) >= 0.999
        others = ConceptCoverage()(completions=scenes, concepts=concepts[2000:] + concepts[:2000])
        assert sum(others) / len(others) < 0.05

    @pytest.mark.parametrize(
        ("text", "concept", "covered"),
        [
            ("The player stood there.", "stand", True),
            ("Two mice ran.", "mouse", True),
            ("Two mice ran.", "run", True),
            ("He was lying down.", "lie", True),
            ("She left.", "leave", True),
            ("He shook hands.", "shake", True),
            ("The children's toys", "child", True),
            ("Wolves howl.", "wolf", True),
            ("DANCING", "dance", True),
            ("a university", "universe", False),
            ("an organization", "organ", False),
            ("He understands.", "stand", False),
            ("The news", "new", False),
            ("a hot dog stand", "hot dog", True),
            ("a dog in hot sand", "hot dog", False),
            ("", "dog", False),
        ],
    )
    def test_forms(self, text, concept, covered):
        assert covers(text, concept) is covered

    def test_value_and_feedback(self):
        question = {
            "completions": ["The player stood in the field."] * 3,
            "concepts": [["look", "field", "run"], [], None],
        }
        assert ConceptCoverage()(**question) == [1 / 3, None, None]
        assert ConceptCoverage().feedback(**question) == ["Missing words: look, run.", "", ""]
        done = {"completions": [[{"role": "assistant", "content": "Runs."}]], "words": ["run_V"]}
        assert ConceptCoverage(concepts="words").feedback(**done) == ["All words are there."]

    @given(st.lists(st.sampled_from("dog cat run stand house throw happy red".split()), min_size=1), st.randoms())
    def test_order_does_not_matter(self, words, random):
        shuffled = random.sample(words, len(words))
        assert ConceptCoverage()(completions=[" ".join(shuffled)], concepts=[words]) == [1.0]

    def test_concept_list(self):
        assert concept_list("field_N#look_V#T-shirt_N") == ["field", "look", "T-shirt"]
        assert concept_list(["ice cream", " dog "]) == ["ice cream", "dog"]


MR = (
    "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[less than £20], customer rating[low], "
    "area[riverside], familyFriendly[yes], near[Burger King]"
)


class TestSlots:
    def test_all_said(self):
        text = (
            "The Eagle is a low rated coffee shop near Burger King and the riverside that is family friendly and is "
            "less than £20 for Japanese food."
        )
        assert SlotCoverage()(completions=[text], meaning_representation=[MR]) == [1.0]
        assert SlotCoverage().feedback(completions=[text], meaning_representation=[MR]) == ["Everything is said."]

    def test_missing_slots(self):
        text = "The Eagle is a café by the river. It is not family-friendly."
        question = {"completions": [text], "meaning_representation": [MR]}
        assert SlotCoverage()(**question) == [3 / 8]
        assert SlotCoverage().feedback(**question) == [
            "Missing: food[Japanese], priceRange[less than £20], customer rating[low], familyFriendly[yes], "
            "near[Burger King]."
        ]

    @pytest.mark.parametrize(
        ("slot", "text", "said"),
        [
            ("familyFriendly[yes]", "a child friendly place", True),
            ("familyFriendly[yes]", "a non-family friendly place", False),
            ("familyFriendly[yes]", "it is not kid friendly", False),
            ("familyFriendly[yes]", "families are welcome", True),
            ("familyFriendly[no]", "it is not kid friendly", True),
            ("familyFriendly[no]", "adults only", True),
            ("familyFriendly[no]", "kid friendly", False),
            ("customer rating[5 out of 5]", "a five star pub", True),
            ("customer rating[5 out of 5]", "a customer rating of 3 out of 5", False),
            ("customer rating[1 out of 5]", "it has 1 out of 5 stars", True),
            ("priceRange[more than £30]", "prices over £30", True),
            ("priceRange[£20-25]", "for £20-25", True),
            ("priceRange[cheap]", "inexpensive", True),
            ("area[city centre]", "in the center of the city", True),
            ("area[riverside]", "in the city centre", False),
            ("name[Aromi]", "AROMI is a pub", True),
            ("name[Aromi]", "Aromira is a pub", False),
            ("food[French]", "French food", True),
        ],
    )
    def test_ways(self, slot, text, said):
        assert SlotCoverage()(completions=[text], meaning_representation=[slot]) == [float(said)]

    def test_every_way_accepts_the_value_itself(self):
        for slot, value in E2E_WAYS:
            if slot == "familyfriendly":
                continue
            text = (
                f"customer rating {value}"
                if slot == "customer rating"
                else f"price {value}"
                if "price" in slot
                else value
            )
            assert SlotCoverage()(completions=[text], meaning_representation=[f"{slot}[{value}]"]) == [1.0], (
                slot,
                value,
            )

    def test_slot_list(self):
        assert slot_list("name[The Eagle], near[Crowne Plaza, Hotel]") == [
            ("name", "The Eagle"),
            ("near", "Crowne Plaza, Hotel"),
        ]
        assert slot_list({"name": "A", "area": None}) == [("name", "A")]
        assert SlotCoverage()(completions=["x"], meaning_representation=[None]) == [None]
