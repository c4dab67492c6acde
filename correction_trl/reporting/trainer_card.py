"""The card of a trained model, the same whether a recipe writes it or `trainer.push_to_hub()`."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from trl.trainer.utils import get_config_model_id


class ModelCardMixin:
    """
    Gives one of TRL's trainers this package's card wherever TRL would write its own: at each checkpoint and in
    `push_to_hub`. What the card says of the method is a fact about the trainer, see [`card_notes`].
    """

    def card_notes(self) -> dict[str, Any]:
        """
        What the model card says of the method, beside its name and its paper.

        Returns:
            `dict`: `description` (`str`); `departures` (`list[str]`), where the method differs from its paper; and, if
            the model is not used like any other, `usage` (`str`), Python code with `{name}` where the model's goes.
        """
        raise NotImplementedError

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the card, `README.md`, without results: nothing was measured.

        Args:
            model_name (`str`, *optional*):
                Name of the model; by default that of the output folder.
            dataset_name (`str`, *optional*):
                Hub id of the data it was trained on.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        if not self.is_world_process_zero():
            return
        from .model_card import write_model_card
        from .privacy import command_line
        from .run_metrics import installed_versions

        write_model_card(
            self.args.output_dir,
            model_name=model_name or Path(self.args.output_dir).resolve().name,
            dataset_name=dataset_name,
            tags=[tag for tag in ([tags] if isinstance(tags, str) else tags or ()) if tag not in self._tag_names],
            metrics={
                "before": {},
                "after": {},
                "difference": {},
                "seconds": None,
                "versions": installed_versions(),
                "command": command_line(),
            },
            **card_facts(self, self.hub_model_id),
        )


def card_facts(trainer: ModelCardMixin, hub_model_id: str | None) -> dict[str, Any]:
    """
    The arguments of [`write_model_card`] that a trainer knows.

    Args:
        trainer ([`ModelCardMixin`]):
            The trainer.
        hub_model_id (`str`, *optional*):
            Where the model is pushed to.
    """
    notes, paper = trainer.card_notes(), trainer._paper
    usage = notes.pop("usage", None)
    return {
        "base_model": get_config_model_id(trainer.model.config) or None,
        "method": {
            "name": trainer._name,
            "tag": trainer._tag_names[-1],
            "citation": paper["citation"],
            **({"url": paper["url"]} if "url" in paper else {"paper_title": paper["title"], "paper_id": paper["id"]}),
            **notes,
        },
        "usage": None if usage is None else usage.replace("{name}", hub_model_id or "path/to/this/folder"),
        "hub_model_id": hub_model_id,
        "peft": is_peft_model(trainer.model),
    }
