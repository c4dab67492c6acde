"""The pool of responses that a corrector learns from, and the value-improving pairs in it.

From [Self-Correct](https://huggingface.co/papers/2211.00053), in its notation: D_x holds the responses to a prompt x
with their values v(y) and feedback f(y); P_x the pairs (x, y, y') with v(y) < v(y'); a pair is drawn by drawing x
uniformly among the prompts that have one, then y uniformly among the responses that can be improved, then y' with

    P[y' | x, y] = exp(alpha (v(y') - v(y)) + beta s(y, y')) / Z(y).

P is never stored: responses lie in columns, and a batch of pairs is drawn from the candidates of its hypotheses by
NumPy, without a loop over pairs. A pool of n responses therefore needs memory for n responses, however many pairs
there are in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from ..errors import BadInput
from ..rewards.similarity import edit_similarity


# Where a response comes from
SOURCES = ("gold", "generator", "corrector")
GOLD, GENERATOR, CORRECTOR = range(3)


@dataclass(slots=True)
class Record:
    """
    A response in the pool.

    Attributes:
        prompt (`int`):
            Number of its prompt.
        text (`str`):
            The response, decoded.
        ids (`Sequence[int]`):
            Its token ids, as they were sampled, stop token included.
        value (`float`, *optional*):
            v(y); `None` if it could not be judged: it is kept, and is in no pair.
        feedback (`str`, *optional*):
            f(y).
        source (`int`, *optional*, defaults to `GENERATOR`):
            `GOLD`, `GENERATOR` or `CORRECTOR`.
        step (`int`, *optional*, defaults to `0`):
            Training step at which it was sampled.
        parent (`int`, *optional*):
            Index of the response that it is a correction of.
        can_be_hypothesis, can_be_target (`bool`, *optional*, defaults to `True`):
            Whether it may stand for y (its prompt, with feedback, fits the context), and for y' (it was not cut off).
    """

    prompt: int
    text: str
    ids: Sequence[int]
    value: float | None
    feedback: str | None = None
    source: int = GENERATOR
    step: int = 0
    parent: int | None = None
    can_be_hypothesis: bool = True
    can_be_target: bool = True


@dataclass
class Pairs:
    """
    Pairs drawn from a pool.

    Attributes:
        hypothesis, target (`np.ndarray` of shape `(n,)`):
            Indices of y and y'.
        similarity (`np.ndarray` of shape `(n,)`):
            s(y, y').
        value_gain (`np.ndarray` of shape `(n,)`):
            v(y') - v(y).
    """

    hypothesis: np.ndarray
    target: np.ndarray
    similarity: np.ndarray
    value_gain: np.ndarray


class PairPool:
    """
    Responses with values and feedback, and the pairs in them.

    Equal responses to a prompt are one: the first stays. Responses that could not be judged stay and are in no pair.

    Args:
        n_prompts (`int`):
            Number of prompts.
        alpha (`float`, *optional*, defaults to `5.0`):
            Weight of the value gained. With `beta=0` and `alpha=0` pairs are drawn uniformly.
        beta (`float`, *optional*, defaults to `2.0`):
            Weight of the similarity.
        similarity (`Callable`, *optional*, defaults to [`~correction_trl.rewards.similarity.edit_similarity`]):
            s(y, y') in [0, 1]. The default runs in C++; another function is called once per candidate.
        pairing (`str`, *optional*, defaults to `"all"`):
            `"all"`: any two responses to a prompt may be a pair. `"own"`: only a response and a correction that was
            sampled for it.
        pair_filter (`str`, *optional*, defaults to `"improving"`):
            `"improving"`: v(y) < v(y'). `"non_decreasing"`: also v(y) = v(y') >= `correct_threshold`, y' = y included,
            so that the corrector sees what needs no correction.
        correct_threshold (`float`, *optional*, defaults to `1.0`):
            Value from which a response counts as right, for `"non_decreasing"`.
        max_per_prompt (`int`, *optional*):
            Most responses kept per prompt, gold ones not counted.
        drop (`str`, *optional*, defaults to `"oldest"`):
            What goes when there are more: `"oldest"` or `"lowest"` (value; of equal ones the oldest).

    Example:

    ```python
    pool = PairPool(n_prompts=1)
    pool.add([Record(0, "1 + 1 = 3", ids=[1, 2], value=0.0), Record(0, "1 + 1 = 2", ids=[1, 3], value=1.0)])
    pairs = pool.sample(4, np.random.default_rng(0))  # four times (response 0, response 1)
    ```
    """

    def __init__(
        self,
        n_prompts: int,
        alpha: float = 5.0,
        beta: float = 2.0,
        similarity: Callable[[str, str], float] = edit_similarity,
        pairing: str = "all",
        pair_filter: str = "improving",
        correct_threshold: float = 1.0,
        max_per_prompt: int | None = None,
        drop: str = "oldest",
    ):
        self.n_prompts = n_prompts
        self.alpha, self.beta, self.similarity = alpha, beta, similarity
        self.pairing, self.pair_filter, self.correct_threshold = pairing, pair_filter, correct_threshold
        self.max_per_prompt, self.drop = max_per_prompt, drop
        self.prompt = np.zeros(0, np.int32)
        self.value = np.zeros(0, np.float64)
        self.source = np.zeros(0, np.int8)
        self.step = np.zeros(0, np.int32)
        self.can_be_hypothesis = np.zeros(0, bool)
        self.can_be_target = np.zeros(0, bool)
        self.text: list[str] = []
        self.feedback: list[str | None] = []
        self._ids, self._ids_end = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._corrections = np.zeros((0, 2), np.int64)  # (hypothesis, correction) of each correction sampled
        self._index: dict[tuple[int, str], int] = {}
        self._pairs: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    def ids(self, index: int) -> list[int]:
        """Token ids of a response."""
        return self._ids[self._ids_end[index - 1] if index else 0 : self._ids_end[index]].tolist()

    # ------------------------------------------------------------------ responses

    def add(self, records: Sequence[Record]) -> int:
        """
        Add responses.

        Args:
            records (`Sequence[Record]`):
                The responses. Those whose text their prompt has already are merged into it (as corrections they still
                count).

        Returns:
            `int`: Number of responses that were new.
        """
        new: list[Any] = []
        corrections: list[Any] = []
        for record in records:
            key = record.prompt, record.text
            index = self._index.get(key)
            if index is None:
                index = self._index[key] = len(self) + len(new)
                new.append(record)
            if record.parent is not None:
                corrections.append((record.parent, index))

        def column(name, values, dtype):
            setattr(self, name, np.concatenate([getattr(self, name), np.asarray(values, dtype)]))

        column("prompt", [record.prompt for record in new], np.int32)
        column("value", [np.nan if record.value is None else record.value for record in new], np.float64)
        column("source", [record.source for record in new], np.int8)
        column("step", [record.step for record in new], np.int32)
        column("can_be_hypothesis", [record.can_be_hypothesis for record in new], bool)
        column("can_be_target", [record.can_be_target for record in new], bool)
        self.text += [record.text for record in new]
        self.feedback += [record.feedback for record in new]
        lengths = np.asarray([len(record.ids) for record in new], np.int64)
        ids = np.fromiter((token for record in new for token in record.ids), np.int32, int(lengths.sum()))
        column("_ids_end", len(self._ids) + lengths.cumsum(), np.int64)
        column("_ids", ids, np.int32)
        if corrections:
            column("_corrections", corrections, np.int64)
            pairs = self._corrections[:, 0] * np.int64(len(self)) + self._corrections[:, 1]
            # Sampled again, a correction is the one that there is
            self._corrections = self._corrections[np.sort(np.unique(pairs, return_index=True)[1])]
        self._pairs = None
        if self.max_per_prompt is not None:
            self._drop_surplus()
        return len(new)

    def copy(self) -> "PairPool":
        """A pool with the same responses, which later additions to this one leave alone."""
        other = PairPool.__new__(PairPool)
        other.__dict__.update(vars(self), text=list(self.text), feedback=list(self.feedback), _index=dict(self._index))
        return other

    def keep(self, kept: np.ndarray) -> None:
        """
        Drop responses.

        Args:
            kept (`np.ndarray` of `bool`, of shape `(len(pool),)`):
                Which ones stay.
        """
        if kept.all():
            return
        number = kept.cumsum() - 1
        lengths = np.diff(self._ids_end, prepend=0)
        self._ids = self._ids[np.repeat(kept, lengths)]
        self._ids_end = lengths[kept].cumsum()
        for name in ("prompt", "value", "source", "step", "can_be_hypothesis", "can_be_target"):
            setattr(self, name, getattr(self, name)[kept])
        self.text = [text for text, stays in zip(self.text, kept, strict=True) if stays]
        self.feedback = [text for text, stays in zip(self.feedback, kept, strict=True) if stays]
        corrections = self._corrections[kept[self._corrections].all(1)]
        self._corrections = number[corrections]
        self._index = {key: i for i, key in enumerate(zip(self.prompt.tolist(), self.text, strict=True))}
        self._pairs = None

    def _drop_surplus(self):
        responses = np.flatnonzero(self.source != GOLD)
        counts = np.bincount(self.prompt[responses], minlength=self.n_prompts)
        if counts.max(initial=0) <= self.max_per_prompt:
            return
        # From the first to go to the last; what could not be judged goes first
        age = np.arange(len(responses))
        if self.drop == "lowest":
            order = np.lexsort((age, np.nan_to_num(self.value[responses], nan=-np.inf), self.prompt[responses]))
        else:
            order = np.lexsort((age, self.prompt[responses]))
        responses = responses[order]
        rank = np.arange(len(responses)) - np.repeat(counts.cumsum() - counts, counts)
        kept = np.ones(len(self), bool)
        kept[responses[rank < np.repeat(counts, counts) - self.max_per_prompt]] = False
        self.keep(kept)

    def hypotheses(self, prompts: np.ndarray, per_prompt: int, rng: np.random.Generator) -> np.ndarray:
        """
        Responses to be corrected, drawn without replacement.

        Args:
            prompts (`np.ndarray`):
                Numbers of the prompts, all different.
            per_prompt (`int`):
                Most responses per prompt.
            rng (`np.random.Generator`):
                Source of randomness.

        Returns:
            `np.ndarray`: Indices of responses of any source but gold, ordered by prompt.
        """
        wanted = np.zeros(self.n_prompts, bool)
        wanted[prompts] = True
        found = np.flatnonzero(wanted[self.prompt] & (self.source != GOLD) & self.can_be_hypothesis)
        found = found[np.lexsort((rng.random(len(found)), self.prompt[found]))]
        counts = np.bincount(self.prompt[found], minlength=self.n_prompts)
        rank = np.arange(len(found)) - np.repeat(counts.cumsum() - counts, counts)
        return found[rank < per_prompt]

    # ------------------------------------------------------------------ pairs

    def _find_pairs(self) -> dict[str, np.ndarray]:
        """The hypotheses with a candidate, ordered by prompt, and where the candidates of each lie in one list."""
        if self._pairs is not None:
            return self._pairs
        if self.pairing == "own":
            hypothesis, target = self._corrections.T
            gain = self.value[target] - self.value[hypothesis]
            kept = gain > 0
            if self.pair_filter == "non_decreasing":
                kept |= (gain == 0) & (self.value[target] >= self.correct_threshold)
            kept &= self.can_be_hypothesis[hypothesis] & self.can_be_target[target]
            hypothesis, candidates = hypothesis[kept], target[kept]
            order = np.lexsort((target[kept], hypothesis, self.prompt[hypothesis]))
            hypothesis, candidates = hypothesis[order], candidates[order]
            first = np.flatnonzero(np.diff(hypothesis, prepend=-1))
            hypotheses, begin, end = hypothesis[first], first, np.append(first[1:], len(hypothesis))
        else:
            targets = np.flatnonzero(self.can_be_target & ~np.isnan(self.value))
            candidates = targets[np.lexsort((self.value[targets], self.prompt[targets]))]
            hypotheses = np.flatnonzero(self.can_be_hypothesis & ~np.isnan(self.value))
            hypotheses = hypotheses[np.argsort(self.prompt[hypotheses], kind="stable")]
            # Candidates are ordered by (prompt, value): those of a hypothesis are all from some place to its prompt's
            # end. Ranks stand for values, so that prompt and value are one number to search for.
            ranks = np.unique(self.value, return_inverse=True)[1].astype(np.int64)
            n_ranks = int(ranks.max(initial=0)) + 1
            place = self.prompt * np.int64(n_ranks) + ranks
            begin = np.searchsorted(place[candidates], place[hypotheses], side="right")
            if self.pair_filter == "non_decreasing":
                from_equal = np.searchsorted(place[candidates], place[hypotheses], side="left")
                begin = np.where(self.value[hypotheses] >= self.correct_threshold, from_equal, begin)
            end = np.searchsorted(self.prompt[candidates], self.prompt[hypotheses], side="right")
            has_candidate = begin < end
            hypotheses, begin, end = hypotheses[has_candidate], begin[has_candidate], end[has_candidate]
        prompts = self.prompt[hypotheses]
        first = np.flatnonzero(np.diff(prompts, prepend=-1))
        self._pairs = {
            "candidates": candidates,
            "hypotheses": hypotheses,
            "begin": begin,
            "end": end,
            "first": first,  # of each prompt with a pair, its first hypothesis
            "n_hypotheses": np.diff(np.append(first, len(hypotheses))),
        }
        return self._pairs

    def sample(self, n: int, rng: np.random.Generator) -> Pairs:
        """
        Draw pairs.

        Args:
            n (`int`):
                Number of pairs.
            rng (`np.random.Generator`):
                Source of randomness.

        Returns:
            [`Pairs`].

        Raises:
            BadInput: If the pool has no pair.
        """
        found = self._find_pairs()
        if not len(found["first"]):
            raise BadInput(
                f"The pool has {len(self)} responses to {self.n_prompts} prompts and not one pair: no prompt has two "
                "responses of different value. Take more samples per prompt or a higher temperature, a graded value "
                "function, or a column with gold references (`gold_column`)."
            )
        prompts = rng.integers(len(found["first"]), size=n)
        place = found["first"][prompts] + (rng.random(n) * found["n_hypotheses"][prompts]).astype(np.int64)
        hypotheses, counts = found["hypotheses"][place], found["end"][place] - found["begin"][place]
        starts = counts.cumsum() - counts
        rows = np.repeat(np.arange(n), counts)
        candidates = found["candidates"][np.arange(len(rows)) - starts[rows] + found["begin"][place][rows]]
        weights = self.alpha * self.value[candidates]  # v(y) is a constant given y
        similarities = None
        if self.beta:
            similarities = self._similarities(hypotheses[rows], candidates)
            weights = weights + self.beta * similarities
        # The largest of weights with Gumbel noise is a draw from their softmax
        noisy = weights + rng.gumbel(size=len(weights))
        best = np.flatnonzero(noisy == np.maximum.reduceat(noisy, starts)[rows])
        best = best[np.unique(rows[best], return_index=True)[1]]
        targets = candidates[best]
        return Pairs(
            hypothesis=hypotheses,
            target=targets,
            similarity=self._similarities(hypotheses, targets) if similarities is None else similarities[best],
            value_gain=self.value[targets] - self.value[hypotheses],
        )

    def _similarities(self, hypotheses: np.ndarray, targets: np.ndarray) -> np.ndarray:
        texts = itemgetter(*hypotheses.tolist(), *targets.tolist())(self.text)
        one, other = texts[: len(hypotheses)], texts[len(hypotheses) :]
        if self.similarity is edit_similarity:
            return cpdist(one, other, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
        return np.array([self.similarity(y, correction) for y, correction in zip(one, other, strict=True)])

    def has_pairs(self) -> bool:
        """Whether there is a pair to draw."""
        return len(self._find_pairs()["first"]) > 0

    def statistics(self) -> dict[str, float]:
        """
        What there is in the pool.

        Returns:
            `dict[str, float]`: `size` (responses), `pairs_per_prompt` (mean over all prompts),
            `prompts_without_pair` (share), `unjudged` (share of the responses), `too_long` (share that cannot be a
            hypothesis) and, for each source that occurs, `value/SOURCE`, the mean value of its responses.
        """
        found = self._find_pairs()
        judged = ~np.isnan(self.value)
        statistics = {
            "size": float(len(self)),
            "pairs_per_prompt": float((found["end"] - found["begin"]).sum() / self.n_prompts),
            "prompts_without_pair": 1 - len(found["first"]) / self.n_prompts,
            "unjudged": float((~judged).mean()) if len(self) else 0.0,
            "too_long": float((~self.can_be_hypothesis).mean()) if len(self) else 0.0,
        }
        for number, name in enumerate(SOURCES):
            values = self.value[judged & (self.source == number)]
            if len(values):
                statistics[f"value/{name}"] = float(values.mean())
        return statistics

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """
        Write the responses to a Parquet file.

        Args:
            path (`str` or `Path`):
                The file.
        """
        parents: list[list[int]] = [[] for _ in range(len(self))]
        for hypothesis, correction in self._corrections.tolist():
            parents[correction].append(hypothesis)
        offsets = pa.array(np.append(0, self._ids_end), pa.int64())
        table = pa.table(
            {
                "prompt": self.prompt,
                "response": pa.array(self.text, pa.large_string()),
                "value": pa.array(self.value, from_pandas=True),  # NaN: null
                "feedback": pa.array(self.feedback, pa.large_string()),
                "source": self.source,
                "step": self.step,
                "can_be_hypothesis": self.can_be_hypothesis,
                "can_be_target": self.can_be_target,
                "ids": pa.LargeListArray.from_arrays(offsets, pa.array(self._ids)),
                "corrects": pa.array(parents, pa.list_(pa.int64())),
            }
        )
        pq.write_table(table.replace_schema_metadata({"n_prompts": str(self.n_prompts)}), path)

    def load(self, path: str | Path) -> None:
        """
        Replace the responses by those of a file that [`~PairPool.save`] wrote; settings stay as they are.

        Args:
            path (`str` or `Path`):
                The file.

        Raises:
            BadInput: If the file does not exist, is no pool, or belongs to another number of prompts.
        """
        try:
            table = pq.read_table(path).combine_chunks()
            n_prompts = int(table.schema.metadata[b"n_prompts"])
        except (OSError, KeyError, TypeError, pa.ArrowException) as error:
            raise BadInput(f"{path} cannot be read as a pool of responses ({error}).") from error
        if n_prompts != self.n_prompts:
            raise BadInput(
                f"The pool in {path} is of {n_prompts} prompts, and there are {self.n_prompts}; use it with the "
                "dataset (and the limits of lengths) that it was made from."
            )
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        for name in ("prompt", "value", "source", "step", "can_be_hypothesis", "can_be_target"):
            setattr(self, name, columns[name].to_numpy(zero_copy_only=False).copy())
        self.text, self.feedback = columns["response"].to_pylist(), columns["feedback"].to_pylist()
        self._ids = columns["ids"].flatten().to_numpy().copy()
        lengths = columns["ids"].value_lengths().to_numpy()
        self._ids_end = lengths.cumsum()
        parents = columns["corrects"].to_pylist()
        edges = [(hypothesis, i) for i, of_one in enumerate(parents) for hypothesis in of_one]
        self._corrections = np.asarray(edges, np.int64).reshape(-1, 2)
        self._index = {key: i for i, key in enumerate(zip(self.prompt.tolist(), self.text, strict=True))}
        self._pairs = None

    def to_dataset(self, prompts: Sequence[Any] | None = None) -> Dataset:
        """
        The responses as a dataset.

        Args:
            prompts (`Sequence`, *optional*):
                The prompts, to stand in the column `prompt` in place of their numbers.

        Returns:
            [`~datasets.Dataset`] with the columns `prompt`, `response`, `value`, `feedback`, `source`, `step`.
        """
        return Dataset.from_dict(
            {
                "prompt": [prompts[i] for i in self.prompt] if prompts is not None else self.prompt,
                "response": self.text,
                "value": [None if np.isnan(value) else value for value in self.value.tolist()],
                "feedback": self.feedback,
                "source": [SOURCES[source] for source in self.source],
                "step": self.step,
            }
        )

    def sample_dataset(self, prompts: Sequence[Any], n: int, seed: int = 0) -> Dataset:
        """
        Pairs drawn from the pool, as the stored pairs that
        [`~correction_trl.CorrectionOptimizationTrainer`] takes.

        Args:
            prompts (`Sequence`):
                The prompts.
            n (`int`):
                Number of pairs.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the draws.

        Returns:
            [`~datasets.Dataset`] with the columns `prompt`, `response`, `correction`.
        """
        pairs = self.sample(n, np.random.default_rng(seed))
        return Dataset.from_dict(
            {
                "prompt": [prompts[self.prompt[i]] for i in pairs.hypothesis],
                "response": [self.text[i] for i in pairs.hypothesis],
                "correction": [self.text[i] for i in pairs.target],
            }
        )
