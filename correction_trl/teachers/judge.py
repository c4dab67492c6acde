"""A model behind an OpenAI-compatible server, as a judge: values and feedback that no program can give."""

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import nodes

from ..chat_server import Request
from ..errors import BadInput
from ..functions import Prompt
from ..rewards.common import completion_text, report_unjudged
from .collection import StoringTeacher
from .prompting import TeacherPrompt, without_thinking
from .server import ServerTeacher
from .store import CORRECTED, UNPARSABLE, CorrectionStore


SCORE, FEEDBACK = "score", "feedback"
_NUMBER = re.compile(r"[-+]?\d{1,12}(?:\.\d{1,12})?")


@dataclass(frozen=True)
class Judgement:
    """
    What a judge said.

    Args:
        value (`float`):
            In [0, 1]: the number between the template's lowest and highest, or its verdict's.
        feedback (`str`, *optional*, defaults to `""`):
            Its words.
    """

    value: float
    feedback: str = ""


class JudgePrompt(TeacherPrompt):
    """
    How a judge is asked: a Jinja file as [`TeacherPrompt`] has, with `lowest` and `highest`, or with `verdicts`.

    `correction_trl/templates/judge.jinja` says in its head what such a file may use; `verdict` is the other one.

    Args:
        template (`str` or `Path`, *optional*, defaults to `"judge"`):
            Name of a template of this package, or a file.

    Raises:
        BadInput: If the file does not exist, is no valid template, or says neither what numbers nor what words it asks
            for.
    """

    called = "judge's prompt"

    def __init__(self, template: str | Path = "judge"):
        super().__init__(template)
        values = {}
        for node in self.tree.find_all(nodes.Assign):
            if node.target.name in ("lowest", "highest", "verdicts"):
                try:
                    values[node.target.name] = node.node.as_const()
                except nodes.Impossible:
                    raise BadInput(
                        f"The {self.called} {self.path}: `{node.target.name}` must be a constant."
                    ) from None
        self.verdicts = values.get("verdicts")
        self.lowest, self.highest = values.get("lowest", 0), values.get("highest")
        if self.verdicts is not None:
            good = isinstance(self.verdicts, dict) and len(self.verdicts) > 1
            if not good or not all(_is_number(value) and 0 <= value <= 1 for value in self.verdicts.values()):
                raise BadInput(
                    f"The {self.called} {self.path}: `verdicts` must be two words or more with their values from 0 to "
                    '1, such as {"right": 1.0, "wrong": 0.0}.'
                )
            self.verdicts = {word.strip().lower(): float(value) for word, value in self.verdicts.items()}
        elif not (_is_number(self.lowest) and _is_number(self.highest) and self.lowest < self.highest):
            raise BadInput(
                f"The {self.called} {self.path} must set `lowest` and `highest`, between which it asks for a number, "
                "or `verdicts`."
            )

    def judgement(self, reply: str) -> tuple[Judgement | None, str | None]:
        """
        What a reply says. Nothing is guessed: a number out of range, two numbers or one with words around it are none.

        Args:
            reply (`str`):
                What the model replied; a reasoning model's thoughts are left out.

        Returns:
            `tuple`: The [`Judgement`] and `None`, or `None` and why there is none.
        """
        text = without_thinking(reply, SCORE)
        if text is None:
            return None, "the model's thoughts do not end"
        opening, closing = f"<{SCORE}>", f"</{SCORE}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or text.index(closing) < text.index(opening):
            return None, f"the reply holds not exactly one {opening} ... {closing}"
        before, _, rest = text.partition(opening)
        said, _, behind = rest.partition(closing)
        said = said.strip()
        if behind.strip():
            return None, f"something follows {closing}"
        feedback = before.rpartition(f"<{FEEDBACK}>")[2].partition(f"</{FEEDBACK}>")[0] if FEEDBACK in before else ""
        if self.verdicts is not None:
            if said.lower() not in self.verdicts:
                return None, f"{said!r:.40} is none of {', '.join(map(repr, self.verdicts))}"
            return Judgement(self.verdicts[said.lower()], feedback.strip()), None
        if not _NUMBER.fullmatch(said):
            return None, f"{said!r:.40} is no number"
        if not self.lowest <= float(said) <= self.highest:
            return None, f"{said} is not from {self.lowest} to {self.highest}"
        return Judgement((float(said) - self.lowest) / (self.highest - self.lowest), feedback.strip()), None


class _Judging(ServerTeacher):
    """A server whose reply is a judgement: it is checked when it comes, asked for again, and kept as it is."""

    _role = "judge"

    def __init__(self, model: str, base_url: str, prompt: JudgePrompt, **settings: Any):
        super().__init__(model, base_url, template=str(prompt.path), **settings)
        self.prompt = prompt
        self.name = f"judge:{model}"

    def _read(self, asked: Request, text: str) -> tuple[tuple[str, str | None], str | None]:
        found, problem = self.prompt.judgement(text)
        return (UNPARSABLE, None) if found is None else (CORRECTED, text), problem


class ServerJudge:
    """
    A judge behind an OpenAI-compatible server. The object is a value function, its method `feedback` the feedback
    function that goes with it; both read one judgement, which is asked for once.

    A reply is read strictly. One that cannot be is asked for again; one that remains so, and a request that failed, is
    not judged: `None`, as of any value function. With a `store` no judgement is bought twice, by no run and no process
    of the machine; without one, not by the same judge.

    A judge can be wrong, can be talked to by the response, and likes its own kind of text: look at some judgements
    before you train on many, and evaluate by something else.

    Example:

    ```python
    from correction_trl.teachers import ServerJudge

    judge = ServerJudge("Qwen/Qwen2.5-72B-Instruct", "http://localhost:8000/v1", store="judgements.sqlite")
    judge(completions=["It is 3."], prompts=["What is 1 + 1?"])  # [0.0]
    judge.feedback(completions=["It is 3."], prompts=["What is 1 + 1?"])  # ["The sum is off by one."]
    ```

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*, defaults to `"http://localhost:8000/v1"`):
            Address up to, and without, `/chat/completions`.
        template (`str` or `Path`, *optional*, defaults to `"judge"`):
            The rubric: a number from 0 to 10 (`"judge"`), right or wrong (`"verdict"`), or a file; see
            [`JudgePrompt`].
        store (`str` or `Path`, *optional*):
            File in which the judgements are kept.
        **settings:
            Further arguments of [`ServerTeacher`]: `temperature`, `max_tokens`, `concurrency`, `api_key_variable`, ...
            The key is by default in `JUDGE_API_KEY`.

    Raises:
        BadInput: If the address, the template or a setting cannot be right.
    """

    __name__ = "judge"

    def __init__(
        self,
        model: str,
        base_url: str = "http://localhost:8000/v1",
        template: str | Path = "judge",
        store: str | Path | None = None,
        **settings: Any,
    ):
        self.prompt = JudgePrompt(template)
        settings = {"max_tokens": 1024, "api_key_variable": "JUDGE_API_KEY", **settings}
        try:
            self.server = _Judging(model, base_url, self.prompt, **settings)
        except TypeError as error:
            name = str(error).rpartition("argument ")[2]
            raise BadInput(f"A judge has no setting {name}; see docs/rewards.md.") from None
        self._folder = None if store is not None else tempfile.TemporaryDirectory()
        self.store = Path(self._folder.name) / "judgements.sqlite" if store is None else Path(store)

    def judgements(
        self, completions: Sequence, prompts: Sequence[Prompt] | None = None, **columns: Any
    ) -> list[Judgement | None]:
        """
        Judge completions.

        Args:
            completions (`Sequence`):
                Texts, or lists of messages.
            prompts (`Sequence`):
                Their prompts.
            **columns:
                The dataset's further columns; the template gets those that it names.

        Returns:
            `list[Judgement | None]`: `None` where there is none.

        Raises:
            BadInput: If there are no prompts.
            ServerFailed: If the server is down, refuses the key, or does not know the model.
        """
        if prompts is None:
            raise BadInput("A judge needs to know what was asked: pass `prompts`.")
        texts = [completion_text(completion) for completion in completions]
        wanted = {name: columns[name] for name in self.server.prompt.columns if isinstance(columns.get(name), list)}
        with CorrectionStore(self.store) as store:
            replies = StoringTeacher(self.server, store).correct(list(prompts), texts, **wanted)
        return [None if reply is None else self.prompt.judgement(reply)[0] for reply in replies]

    def __call__(
        self, completions: Sequence, prompts: Sequence[Prompt] | None = None, log_metric=None, **columns: Any
    ):
        """One value in [0, 1] per completion; `None`: not judged."""
        found = self.judgements(completions, prompts, **columns)
        values = [None if judgement is None else judgement.value for judgement in found]
        return report_unjudged(self.__name__, values, ["the judge gave no value"] * len(values), log_metric)

    def feedback(self, completions: Sequence, prompts: Sequence[Prompt] | None = None, **columns: Any) -> list[str]:
        """What the judge said about each completion; empty where it said nothing."""
        found = self.judgements(completions, prompts, **columns)
        return ["" if judgement is None else judgement.feedback for judgement in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
