"""The card of a trained model and what is pushed with it, the same whether a recipe does it or the trainer."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api
from trl.trainer.utils import get_config_model_id

from .privacy import command_line, upload_publishable
from .trackers import run_pages


# Of a checkpoint, what is used without training on; not the card that PEFT puts there
_MODEL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "adapter_model.*", "model*.safetensors",
    "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


class ModelCardMixin:
    """
    Gives one of TRL's trainers this package's card wherever TRL would write its own, at each checkpoint and in
    `push_to_hub`, and keeps at home what a push must not take along: paths of this machine and what may hold a token.
    What the card says of the method is a fact about the trainer, see [`card_notes`].
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

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Upload model, tokenizer and card as [`~transformers.Trainer.push_to_hub`] does, with its arguments. A local
        base model is named without its path, and `training_args.bin`, logs and checkpoints stay at home.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        token = args.hub_token if token is None else token
        if self.hub_model_id is None:  # `args.push_to_hub` is false
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # on all processes, of which one writes
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = dict.fromkeys([*([tags] if isinstance(tags, str) else tags), *(self.model.model_tags or ())])
        model_name = kwargs.pop("model_name", None) or Path(args.hub_model_id or args.output_dir).name
        self.create_model_card(model_name=model_name, tags=list(tags), **kwargs)
        self._finish_current_push()
        revision = args.hub_revision if revision is None else revision
        return self._upload(args.output_dir, blocking, commit_message=commit_message, token=token, revision=revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, checkpoint = self.args, Path(checkpoint_folder)
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        earlier = self.push_in_progress
        if earlier is not None and not earlier.is_done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        for pattern in _MODEL_FILES:
            for file in checkpoint.glob(pattern):
                shutil.copy(file, args.output_dir)
        self.processing_class.save_pretrained(args.output_dir)
        options = {"token": args.hub_token, "revision": args.hub_revision}
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(args.output_dir, False, commit_message=message, **options)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            shutil.copy(Path(args.output_dir, "README.md"), checkpoint)  # over PEFT's, which holds the base's path
            place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            message += ", checkpoint"
            jobs.append(self._upload(checkpoint, False, commit_message=message, path_in_repo=place, **options))
        self.push_in_progress = PushInProgress(jobs if earlier is None else [*earlier.jobs, *jobs])

    def _upload(self, folder: str | Path, blocking: bool, **options) -> CommitInfo | Future:
        api = hf_api()
        if blocking:
            return upload_publishable(api, folder, repo_id=self.hub_model_id, **options)
        # One after the other, as the API's own futures
        return api.run_as_future(upload_publishable, api, folder, repo_id=self.hub_model_id, **options)


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
        "run_pages": run_pages(trainer),
    }
