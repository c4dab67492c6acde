import pytest
import torch
from helpers import build_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from correction_trl.policy.generation import Sampler, generate, generate_completions, seed_of


PAD, STOP, OTHER_STOP = 0, 2, 9


class Scripted:
    """Continues the prompt that ends in token t with `script[t]`, and notes what it was given."""

    device = torch.device("cpu")

    def __init__(self, script: dict[int, list[int]]):
        self.script = script
        self.calls = []

    def generate(self, input_ids, attention_mask, generation_config):
        self.calls.append((input_ids, attention_mask))
        completions = [self.script[row[-1]] for row in input_ids.tolist()]
        longest = max(map(len, completions))
        padded = [ids + [generation_config.pad_token_id] * (longest - len(ids)) for ids in completions]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def config(eos_token_id=STOP, **kwargs) -> GenerationConfig:
    return GenerationConfig(pad_token_id=PAD, eos_token_id=eos_token_id, **kwargs)


def test_a_completion_ends_with_its_first_stop_token():
    model = Scripted({1: [5, STOP, 6, STOP], 3: [STOP, 7, 7, 7], 4: [5, 6, 7, 8]})
    completions = generate_completions(model, [[1], [3], [4]], config())
    assert completions == [[5, STOP], [STOP], [5, 6, 7, 8]]


def test_each_of_several_stop_tokens_ends_a_completion():
    model = Scripted({1: [5, OTHER_STOP, STOP], 3: [5, 6, STOP]})
    assert generate_completions(model, [[1], [3]], config([STOP, OTHER_STOP])) == [[5, OTHER_STOP], [5, 6, STOP]]


def test_padding_that_is_the_stop_token_leaves_one_stop_token():
    model = Scripted({1: [5, STOP], 3: [5, 6, 7, STOP]})
    generation_config = GenerationConfig(pad_token_id=STOP, eos_token_id=STOP)
    assert generate_completions(model, [[1], [3]], generation_config) == [[5, STOP], [5, 6, 7, STOP]]


def test_a_sampled_padding_token_is_a_token_like_any_other():
    assert generate_completions(Scripted({1: [5, PAD, 6, STOP]}), [[1]], config()) == [[5, PAD, 6, STOP]]


def test_no_prompts_give_no_completions():
    assert generate_completions(Scripted({}), [], config()) == []


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9), batch_size=st.one_of(st.none(), st.integers(1, 10))
)
def test_order_is_kept_and_prompts_are_padded_on_the_left_and_masked(lengths, batch_size):
    prompts = [[1] * (length - 1) + [10 + i] for i, length in enumerate(lengths)]
    model = Scripted({10 + i: [100 + i, STOP] for i in range(len(prompts))})
    assert generate_completions(model, prompts, config(), batch_size) == [[100 + i, STOP] for i in range(len(prompts))]
    seen = []
    for input_ids, attention_mask in model.calls:
        assert len(input_ids) <= (batch_size or len(prompts))
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            n_padding = mask.count(0)
            assert ids[:n_padding] == [PAD] * n_padding and mask == sorted(mask)
            seen.append(ids[n_padding:])
    assert sorted(seen) == sorted(prompts)
    if batch_size == 1:
        assert all(mask.all() for _, mask in model.calls)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return build_model(tiny_tokenizer).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 7, None])
def test_greedy_completions_do_not_depend_on_the_batch(model, tiny_tokenizer, plain_prompts, batch_size):
    prompts = [tiny_tokenizer(prompt)["input_ids"] for prompt in plain_prompts["prompt"][:16]]
    generation_config = config(
        [tiny_tokenizer.eos_token_id, tiny_tokenizer.convert_tokens_to_ids("7")], do_sample=False, max_new_tokens=12
    )
    alone = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), generation_config=generation_config)[0, len(prompt) :]
        alone.append(ids.tolist())  # generate stops by itself where there is no other row
    assert generate_completions(model, prompts, generation_config, batch_size) == alone
    assert len({len(ids) for ids in alone}) > 1 and max(map(len, alone)) == 12


def test_sampling_follows_the_random_state(model, tiny_tokenizer):
    prompts = [tiny_tokenizer("what is 1+2? ")["input_ids"]] * 8
    generation_config = config(tiny_tokenizer.eos_token_id, do_sample=True, top_k=0, max_new_tokens=8)
    samples = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            samples.append(generate_completions(model, prompts, generation_config))
    assert samples[0] == samples[1] != samples[2]
    assert len(set(map(tuple, samples[0]))) == 8


def test_generation_leaves_no_graph_behind(model, tiny_tokenizer):
    with torch.enable_grad():
        generate_completions(model, [[tiny_tokenizer.bos_token_id]], config(do_sample=False, max_new_tokens=2))
    assert all(parameter.grad is None for parameter in model.parameters())


# --------------------------------------------------------------------------------------------------------------------
# Random numbers of the row's own
# --------------------------------------------------------------------------------------------------------------------


def test_a_row_draws_the_same_in_every_batch(model, tiny_tokenizer, plain_prompts):
    """Alone, among others, in another order: a response depends on its seed alone, and on no global random state."""
    prompts = [tiny_tokenizer(prompt)["input_ids"] for prompt in plain_prompts["prompt"][:12]]
    seeds = [seed_of("a run", row) for row in range(12)]
    generation_config = config(tiny_tokenizer.eos_token_id, do_sample=True, top_k=0, max_new_tokens=8)
    state = torch.get_rng_state()
    together = generate_completions(model, prompts, generation_config, seeds=seeds)
    alone = [generate(model, [ids], generation_config, [s])[0][0] for ids, s in zip(prompts, seeds, strict=True)]
    backwards = generate_completions(model, prompts[::-1], generation_config, batch_size=5, seeds=seeds[::-1])
    assert together == alone == backwards[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    others = generate_completions(model, prompts, generation_config, seeds=[seed + 1 for seed in seeds])
    assert sum(a == b for a, b in zip(together, others, strict=True)) < 4


@pytest.mark.parametrize(("settings", "kept"), [({"temperature": 1.0}, None), ({"temperature": 2.0, "top_k": 5}, 5)])
def test_rows_draw_from_the_distribution_of_the_model(model, tiny_tokenizer, settings, kept):
    """Chi-square of 4,000 first tokens against softmax(logits / temperature), cut to the likeliest `top_k`."""
    n_draws = 4000
    sampler = Sampler(model, tiny_tokenizer, max_new_tokens=1, **settings)
    prompt = tiny_tokenizer("what is 1+2? ")["input_ids"]
    drawn = generate(model, [prompt] * n_draws, sampler.config, list(range(n_draws)))[0]
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=model.config.vocab_size).double()
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double() / settings["temperature"]
    if kept is not None:
        logits[logits < logits.topk(kept).values[-1]] = -torch.inf
    expected = logits.softmax(0) * n_draws
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    degrees = int(common.sum()) - 1
    assert degrees >= 3 and chi_square < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations
