"""Writes the prompts: two sentences about everyday topics, split by topic, so that the test's are not trained on."""

import json
import random
from pathlib import Path


TOPICS = """
a lighthouse; a night train; a bakery at dawn; the first snow; a chess club; an old bridge; a fishing village;
a rooftop garden; a thunderstorm; a public library; a mountain hut; a street musician; an empty stadium; a
family dinner; a ferry; a rainforest; a corner shop; a desert road; an observatory; a beehive; a harvest; a
swimming lesson; a puppet theatre; a river delta; a hospital at night; a village school; a market in spring; a
clockmaker; a cycling race; a foggy harbour; an orchard; a kitchen; a museum of toys; an island; a campsite;
the northern lights; a farmhouse; a planetarium; a concert hall; a sheepdog; a tram; a wedding; a coral reef;
a barbershop; a hot spring; a canal; a bookshop; a vineyard; a kite; a waterfall; a post office; a lake in
winter; a tailor; a greenhouse; an airport; a monastery; a pond; a playground; a volcano; a bicycle; a lion; a
pottery; a cave; a castle; a marathon; an elephant; a tea house; a barn; a snowman; a carpenter; a cathedral;
a windmill; a valley; a train station; a picnic; a glacier; an attic; a ballet; a soup; a cat; a grandmother;
a pier; a zoo; a jungle; a painter; a wheat field; a fireplace; a juggler; a submarine; a hotel; an owl; a
piano; a courtroom; a birthday; a sunset; a football match; an office; a moon landing; a map; a rose
"""
FORMS = ("Write two sentences about {}.", "Describe {} in two sentences.", "Tell me about {} in two sentences.")


def main():
    topics = [topic.strip() for topic in TOPICS.replace("\n", " ").split(";")]
    random.Random(0).shuffle(topics)
    for split, of_split in (("train", topics[:64]), ("validation", topics[64:76]), ("test", topics[76:])):
        rows = [{"prompt": [{"role": "user", "content": form.format(topic)}]} for topic in of_split for form in FORMS]
        random.Random(1).shuffle(rows)
        path = Path(__file__).parent / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
