"""Random vision-language models of a few ten thousand parameters with their processors, and problems with images."""

import random

import datasets
import torch
from helpers import build_tokenizer
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil


COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}

# Like conftest's, for contents in parts (text parts alone in the answers)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<assistant>' if message.role == 'assistant' else '<user>' }}"
    "{% for part in message.content %}{{ IMAGE if part.type == 'image' else part.text }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _text_settings(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def build_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<image>"]})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<image>'"),
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION, projection_dim=16, initializer_range=0.3),
        text_config=LlamaConfig(**_text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return _build(LlavaForConditionalGeneration, config, tokenizer), processor


def build_gemma3() -> tuple[Gemma3ForConditionalGeneration, Gemma3Processor]:
    """Its processor also says of each token whether it is an image's; the model attends accordingly."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        extra_special_tokens={"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
        clean_up_tokenization_spaces=False,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=1,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "'<boi>'"),
    )
    config = Gemma3Config(
        text_config=_text_settings(tokenizer) | {"num_key_value_heads": 4, "head_dim": 8},
        vision_config=_VISION,
        mm_tokens_per_image=1,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    model = _build(Gemma3ForConditionalGeneration, config, tokenizer)
    projection = model.model.multi_modal_projector.mm_input_projection_weight  # zeros in a new model: it sees nothing
    torch.nn.init.normal_(projection, generator=torch.Generator().manual_seed(0))
    return model, processor


def _build(model_class, config, tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()


def image_problems(n: int = 12, column: str = "image") -> datasets.Dataset:
    """Squares of one color."""
    generator = random.Random(0)
    rows = []
    for i in range(n):
        name = generator.choice(list(COLORS))
        image = Image.new("RGB", (28, 28), COLORS[name])
        question = ["what is the color?", "which color?", "color?"][i % 3]
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                column: image if column == "image" else [image],
                "answer": name,
            }
        )
    return datasets.Dataset.from_list(rows)


def odd_number_of_letters(completions, **columns):
    """A value function under which random answers are sometimes right."""
    return [float(len(completion[-1]["content"]) % 2) for completion in completions]
