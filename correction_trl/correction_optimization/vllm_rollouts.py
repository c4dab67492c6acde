"""Responses that vLLM samples, by TRL's own bridge to it."""

from transformers import Trainer
from trl.import_utils import is_vllm_available


class VLLMRollouts:
    """
    Samples the responses of a trainer's policy by vLLM, whose weights are brought up to date at the first call of a
    step.

    Args:
        trainer ([`CorrectionOptimizationTrainer`]):
            Whose policy it is; its arguments say how vLLM is started.

    Raises:
        ImportError: If vLLM is not installed.
    """

    def __init__(self, trainer: Trainer):
        args = trainer.args
        self._synced_step = -1
        self._engine = vllm_generation()(
            model=trainer.model,
            accelerator=trainer.accelerator,
            processing_class=trainer.processing_class,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * (args.max_staleness + 1)
            * args.vllm_tensor_parallel_size,
            trust_remote_code=args.trust_remote_code,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_completion_length=args.max_completion_length,
            logprobs=None,
            generation_kwargs=args.generation_kwargs,
        )

    def __call__(self, prompt_ids: list[list[int]], step: int) -> list[list[int]]:
        """
        Args:
            prompt_ids (`list[list[int]]`):
                Token ids of the prompts.
            step (`int`):
                Number of the update.

        Returns:
            `list[list[int]]`: Ids of a response to each.
        """
        if self._synced_step != step:
            self._engine.sync_weights()
            self._synced_step = step
        return self._engine.generate(prompts=prompt_ids, images=None, num_generations=1)[1]


def vllm_generation() -> type:
    """TRL's class, if vLLM is installed."""
    if not is_vllm_available():
        raise ImportError("`use_vllm=True` needs vLLM: pip install 'correction-trl[vllm]'.")
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration
