"""Tiny random models of transformers: a class, what it is called with, and what its configuration needs beside sizes.

A configuration is the default of its class with the commonly named sizes made small and, where possible, distinct; what
a default cannot take is listed by model. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, TOKENS, IMAGE = 99, 12, 32


def _each(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, int] = {
    **_each(48, "hidden_size n_embd d_model dim embed_dim embedding_dim emb_dim encoder_embed_dim decoder_embed_dim"),
    **_each(2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers"),
    **_each(2, "num_decoder_layers"),
    **_each(4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    **_each(2, "num_key_value_heads"),
    **_each(16, "head_dim d_kv d_head attention_head_size"),
    **_each(80, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner hidden_dim mlp_dim"),
    **_each(80, "ffn_hidden_size dim_feedforward feed_forward_size"),
    **_each(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_each(2, "num_experts_per_tok moe_top_k top_k n_group"),
    **_each(56, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    **_each(1, "topk_group first_k_dense_replace"),
    "state_size": 6,
    "time_step_rank": 5,
    "mamba_d_state": 6,
    "mamba_dt_rank": 5,
    **_each(VOCABULARY, "vocab_size text_vocab_size decoder_vocab_size"),
    **_each(64, "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions"),
    **_each(0, "pad_token_id"),
    **_each(1, "bos_token_id eos_token_id decoder_start_token_id sep_token_id"),
    **_each(40, "projection_dim"),
    **_each(7, "num_queries"),
    "image_size": IMAGE,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Tiny:
    """One model: its class in transformers, what it is called with, and fields of its configuration."""

    model: str
    inputs: str = "text"
    fields: dict[str, Any] = field(default_factory=dict)


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model called ``name`` and its example inputs."""
    import transformers

    tiny = MODELS[name]
    cls = getattr(transformers, tiny.model)
    config = shrunk(cls.config_class, tiny.fields)
    return cls(config), INPUTS[tiny.inputs](config)


def shrunk(cls: Any, fields: dict[str, Any]) -> Any:
    """A configuration of ``cls`` with small sizes and these fields; those that are configurations take a dict."""
    import transformers

    default = cls()
    own = {name: SIZES[name] for name, value in vars(default).items() if name in SIZES and type(value) is int}
    parts: dict[str, Any] = {}
    for name in cls.sub_configs:
        inner = dict(fields.get(name, {}))
        kind = getattr(transformers, inner.pop("class")) if "class" in inner else type(getattr(default, name, None))
        if kind is not type(None):
            parts[name] = shrunk(kind, inner)
    config = cls(**{**own, **fields, **parts})
    config.use_cache = False
    return config


# ------------------------------------------------------------------------------------------------------------- inputs


def _ids(num: int = TOKENS) -> Tensor:
    ids = torch.randint(5, VOCABULARY - 20, (2, num), generator=torch.Generator().manual_seed(num))
    ids[:, -1] = SIZES["eos_token_id"]  # where some read what stands for the whole text
    return ids


def _pixels(config: Any) -> Tensor:
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", IMAGE)
    size = size if isinstance(size, int) else size[0]
    return torch.randn(2, getattr(inner, "num_channels", 3), size, size)


INPUTS: dict[str, Any] = {
    "text": lambda config: {"input_ids": _ids()},
    "long text": lambda config: {"input_ids": _ids(64)},
    "text to text": lambda config: {"input_ids": _ids(), "decoder_input_ids": _ids(9)},
    "long text to text": lambda config: {"input_ids": _ids(64), "decoder_input_ids": _ids(9)},
    "image": lambda config: {"pixel_values": _pixels(config)},
    "image 64": lambda config: {"pixel_values": torch.randn(2, 3, 64, 64)},
    "image and text": lambda config: {"pixel_values": _pixels(config), "input_ids": _ids()},
    "wave": lambda config: {"input_values": torch.randn(2, 900)},
    "wave to text": lambda config: {"input_values": torch.randn(2, 900), "decoder_input_ids": _ids(9)},
    "spectrum to text": lambda config: {
        "input_features": torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions),
        "decoder_input_ids": _ids(9),
    },
    "features to text": lambda config: {"input_features": torch.randn(2, 40, 80), "decoder_input_ids": _ids(9)},
    "spectrogram": lambda config: {"input_values": torch.randn(2, config.max_length, config.num_mel_bins)},
    "series": lambda config: {"past_values": torch.randn(2, config.context_length, config.num_input_channels)},
    "video": lambda config: {"pixel_values": torch.randn(2, config.num_frames, 3, IMAGE, IMAGE)},
}

# ------------------------------------------------------------------------------------------------------------- models

_WAVE = {"conv_dim": [20] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def _resnet(*stages: str) -> dict[str, Any]:
    """A backbone that returns these stages."""
    sizes = {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 48], "depths": [1, 1, 1, 1]}
    return {"class": "ResNetConfig", **sizes, "out_features": list(stages)}


MODELS: dict[str, Tiny] = {
    # text, both directions
    "bert": Tiny("BertForSequenceClassification"),
    "roberta": Tiny("RobertaForMaskedLM"),
    "xlm-roberta": Tiny("XLMRobertaForSequenceClassification"),
    "deberta": Tiny("DebertaForSequenceClassification"),
    "deberta-v2": Tiny(
        "DebertaV2ForSequenceClassification",
        fields={
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
        },
    ),
    "albert": Tiny("AlbertForSequenceClassification", fields={"embedding_size": 20}),
    "electra": Tiny("ElectraForSequenceClassification", fields={"embedding_size": 20}),
    "distilbert": Tiny("DistilBertForSequenceClassification"),
    "mpnet": Tiny("MPNetForSequenceClassification"),
    "mobilebert": Tiny(
        "MobileBertForSequenceClassification",
        fields={
            "embedding_size": 20,
            "intra_bottleneck_size": 24,
            "true_hidden_size": 24,
        },
    ),
    "convbert": Tiny("ConvBertForSequenceClassification", fields={"embedding_size": 20}),
    "squeezebert": Tiny("SqueezeBertForSequenceClassification", fields={"embedding_size": 48}),
    "roformer": Tiny("RoFormerForSequenceClassification", fields={"embedding_size": 20}),
    "rembert": Tiny(
        "RemBertForSequenceClassification",
        fields={
            "input_embedding_size": 20,
            "output_embedding_size": 24,
        },
    ),
    "megatron-bert": Tiny("MegatronBertForSequenceClassification"),
    "nystromformer": Tiny(
        "NystromformerForSequenceClassification", fields={"num_landmarks": 4, "segment_means_seq_len": 12}
    ),
    "fnet": Tiny("FNetForSequenceClassification"),
    "modernbert": Tiny("ModernBertForSequenceClassification"),
    "esm": Tiny("EsmForSequenceClassification", fields={"vocab_size": 99, "mask_token_id": 4, "pad_token_id": 0}),
    "luke": Tiny("LukeForSequenceClassification", fields={"entity_vocab_size": 20, "entity_emb_size": 24}),
    "canine": Tiny("CanineForSequenceClassification", fields={"num_hash_buckets": 32, "local_transformer_stride": 8}),
    "funnel": Tiny("FunnelForSequenceClassification", fields={"block_sizes": [1, 1, 1]}),
    "xlnet": Tiny("XLNetForSequenceClassification", fields={"d_head": 12}),
    "longformer": Tiny(
        "LongformerForSequenceClassification", "long text", {"attention_window": 8, "max_position_embeddings": 80}
    ),
    "big_bird": Tiny("BigBirdForSequenceClassification", "long text", {"attention_type": "original_full"}),
    "big_bird-sparse": Tiny("BigBirdForSequenceClassification", "long text", {"block_size": 4, "num_random_blocks": 1}),
    "reformer": Tiny(
        "ReformerModelWithLMHead",
        "long text",
        {
            "is_decoder": True,
            "hash_seed": 0,
            "axial_pos_shape": (8, 8),
            "axial_pos_embds_dim": (16, 32),
            "attn_layers": ["local", "lsh"],
            "local_attn_chunk_length": 8,
            "lsh_attn_chunk_length": 8,
            "num_buckets": 4,
        },
    ),
    "xlm": Tiny("XLMForSequenceClassification"),
    "perceiver": Tiny(
        "PerceiverForSequenceClassification",
        fields={
            "num_latents": 10,
            "d_latents": 40,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
    ),
    # text, from left to right
    "gpt2": Tiny("GPT2LMHeadModel"),
    "openai-gpt": Tiny("OpenAIGPTLMHeadModel"),
    "gpt_neo": Tiny("GPTNeoForCausalLM", fields={"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gpt_neox": Tiny("GPTNeoXForCausalLM"),
    "gptj": Tiny("GPTJForCausalLM", fields={"rotary_dim": 8}),
    "gpt_bigcode": Tiny("GPTBigCodeForCausalLM"),
    "codegen": Tiny("CodeGenForCausalLM", fields={"rotary_dim": 8}),
    "ctrl": Tiny("CTRLLMHeadModel", fields={"dff": 80}),
    "opt": Tiny("OPTForCausalLM", fields={"word_embed_proj_dim": 48}),
    "xglm": Tiny("XGLMForCausalLM"),
    "bloom": Tiny("BloomForCausalLM"),
    "biogpt": Tiny("BioGptForCausalLM"),
    "llama": Tiny("LlamaForCausalLM"),
    "llama-full-heads": Tiny("LlamaForCausalLM", fields={"num_key_value_heads": 4}),
    "mistral": Tiny("MistralForCausalLM"),
    "ministral": Tiny("MinistralForCausalLM", fields={"head_dim": 16}),
    "qwen2": Tiny("Qwen2ForCausalLM"),
    "qwen3": Tiny("Qwen3ForCausalLM"),
    "gemma": Tiny("GemmaForCausalLM"),
    "gemma2": Tiny("Gemma2ForCausalLM"),
    "gemma3": Tiny("Gemma3ForCausalLM"),
    "phi": Tiny("PhiForCausalLM"),
    "phi3": Tiny("Phi3ForCausalLM"),
    "falcon": Tiny("FalconForCausalLM", fields={"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-alibi": Tiny(
        "FalconForCausalLM", fields={"alibi": True, "new_decoder_architecture": False, "multi_query": False}
    ),
    "mpt": Tiny("MptForCausalLM", fields={"n_layers": 2}),
    "stablelm": Tiny("StableLmForCausalLM", fields={"hidden_size": 64}),
    "starcoder2": Tiny("Starcoder2ForCausalLM"),
    "olmo": Tiny("OlmoForCausalLM"),
    "olmo2": Tiny("Olmo2ForCausalLM"),
    "olmo3": Tiny("Olmo3ForCausalLM"),
    "cohere": Tiny("CohereForCausalLM"),
    "cohere2": Tiny("Cohere2ForCausalLM"),
    "granite": Tiny("GraniteForCausalLM"),
    "glm": Tiny("GlmForCausalLM"),
    "glm4": Tiny("Glm4ForCausalLM"),
    "nemotron": Tiny("NemotronForCausalLM", fields={"head_dim": 16, "num_key_value_heads": 2}),
    "persimmon": Tiny("PersimmonForCausalLM"),
    "helium": Tiny("HeliumForCausalLM", fields={"head_dim": 12}),
    "smollm3": Tiny("SmolLM3ForCausalLM"),
    "diffllama": Tiny("DiffLlamaForCausalLM"),
    "exaone4": Tiny("Exaone4ForCausalLM"),
    # experts
    "mixtral": Tiny("MixtralForCausalLM"),
    "qwen2_moe": Tiny("Qwen2MoeForCausalLM"),
    "qwen3_moe": Tiny("Qwen3MoeForCausalLM"),
    "olmoe": Tiny("OlmoeForCausalLM"),
    "phimoe": Tiny("PhimoeForCausalLM"),
    "granitemoe": Tiny("GraniteMoeForCausalLM"),
    "gpt_oss": Tiny("GptOssForCausalLM"),
    "dbrx": Tiny("DbrxForCausalLM", fields={"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}),
    "jetmoe": Tiny("JetMoeForCausalLM", fields={"kv_channels": 16}),
    "deepseek_v2": Tiny(
        "DeepseekV2ForCausalLM", fields={"head_dim": 8, "num_key_value_heads": 4, "num_experts_per_tok": 2}
    ),
    "deepseek_v3": Tiny("DeepseekV3ForCausalLM", fields={"head_dim": 8, "num_key_value_heads": 4}),
    "switch_transformers": Tiny("SwitchTransformersForConditionalGeneration", "text to text"),
    # states
    "mamba": Tiny("MambaForCausalLM"),
    "mamba2": Tiny("Mamba2ForCausalLM", fields={"num_heads": 6, "n_groups": 2, "chunk_size": 4}),
    "falcon_mamba": Tiny("FalconMambaForCausalLM"),
    "rwkv": Tiny("RwkvForCausalLM", fields={"attention_hidden_size": 40, "context_length": 32}),
    "jamba": Tiny("JambaForCausalLM", fields={"attn_layer_period": 2, "attn_layer_offset": 1}),
    "bamba": Tiny(
        "BambaForCausalLM",
        fields={
            "attn_layer_indices": [1],
            "mamba_n_heads": 6,
            "mamba_d_head": 16,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 4,
        },
    ),
    "recurrent_gemma": Tiny(
        "RecurrentGemmaForCausalLM", fields={"lru_width": 40, "num_hidden_layers": 3, "attention_window_size": 8}
    ),
    "zamba": Tiny(
        "ZambaForCausalLM",
        fields={
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "attention_hidden_size": 96,
            "attention_head_dim": 24,
            "num_key_value_heads": 4,
        },
    ),
    # text to text
    "t5": Tiny("T5ForConditionalGeneration", "text to text"),
    "mt5": Tiny("MT5ForConditionalGeneration", "text to text"),
    "umt5": Tiny("UMT5ForConditionalGeneration", "text to text"),
    "longt5": Tiny("LongT5ForConditionalGeneration", "long text to text", {"local_radius": 7, "global_block_size": 4}),
    "longt5-global": Tiny(
        "LongT5ForConditionalGeneration",
        "long text to text",
        {
            "local_radius": 7,
            "global_block_size": 4,
            "encoder_attention_type": "transient-global",
        },
    ),
    "bart": Tiny("BartForConditionalGeneration", "text to text"),
    "mbart": Tiny("MBartForConditionalGeneration", "text to text"),
    "m2m_100": Tiny("M2M100ForConditionalGeneration", "text to text"),
    "pegasus": Tiny("PegasusForConditionalGeneration", "text to text"),
    "pegasus_x": Tiny(
        "PegasusXForConditionalGeneration", "long text to text", {"num_global_tokens": 4, "block_size": 8}
    ),
    "marian": Tiny("MarianMTModel", "text to text"),
    "blenderbot": Tiny("BlenderbotForConditionalGeneration", "text to text"),
    "led": Tiny(
        "LEDForConditionalGeneration",
        "long text to text",
        {
            "attention_window": 8,
            "max_encoder_position_embeddings": 80,
            "max_decoder_position_embeddings": 64,
        },
    ),
    "prophetnet": Tiny("ProphetNetForConditionalGeneration", "text to text"),
    "fsmt": Tiny(
        "FSMTForConditionalGeneration",
        "text to text",
        {"langs": ["en", "de"], "src_vocab_size": 99, "tgt_vocab_size": 99},
    ),
    # images
    "vit": Tiny("ViTForImageClassification", "image"),
    "deit": Tiny("DeiTForImageClassification", "image"),
    "beit": Tiny("BeitForImageClassification", "image"),
    "data2vec-vision": Tiny("Data2VecVisionForImageClassification", "image", {"use_relative_position_bias": True}),
    "dinov2": Tiny("Dinov2ForImageClassification", "image"),
    "vit_msn": Tiny("ViTMSNForImageClassification", "image"),
    "vit_mae": Tiny(
        "ViTMAEForPreTraining",
        "image",
        {
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 56,
        },
    ),
    "ijepa": Tiny("IJepaForImageClassification", "image"),
    "swin": Tiny(
        "SwinForImageClassification",
        "image 64",
        {"image_size": 64, "patch_size": 4, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "embed_dim": 24},
    ),
    "swinv2": Tiny(
        "Swinv2ForImageClassification",
        "image 64",
        {"image_size": 64, "patch_size": 4, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "embed_dim": 24},
    ),
    "convnext": Tiny(
        "ConvNextForImageClassification",
        "image 64",
        {"hidden_sizes": [16, 20, 24, 28], "depths": [1, 1, 2, 1], "num_stages": 4, "patch_size": 4},
    ),
    "convnextv2": Tiny(
        "ConvNextV2ForImageClassification",
        "image 64",
        {"hidden_sizes": [16, 20, 24, 28], "depths": [1, 1, 2, 1], "num_stages": 4, "patch_size": 4},
    ),
    "segformer": Tiny(
        "SegformerForSemanticSegmentation",
        "image 64",
        {
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 36,
        },
    ),
    "resnet": Tiny(
        "ResNetForImageClassification",
        "image 64",
        {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 48], "depths": [1, 1, 2, 1]},
    ),
    "regnet": Tiny(
        "RegNetForImageClassification",
        "image 64",
        {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 48], "depths": [1, 1, 2, 1], "groups_width": 8},
    ),
    "bit": Tiny(
        "BitForImageClassification",
        "image 64",
        {"embedding_size": 16, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 2, 1], "num_groups": 4},
    ),
    "poolformer": Tiny(
        "PoolFormerForImageClassification",
        "image 64",
        {"hidden_sizes": [16, 20, 24, 28], "depths": [1, 1, 2, 1], "patch_size": 16},
    ),
    "mobilevit": Tiny(
        "MobileViTForImageClassification",
        "image 64",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 48],
            "image_size": 64,
            "patch_size": 2,
        },
    ),
    "mobilevitv2": Tiny(
        "MobileViTV2ForImageClassification",
        "image 64",
        {"base_attn_unit_dims": [16, 24, 32], "image_size": 64, "patch_size": 2, "width_multiplier": 0.25},
    ),
    "mobilenet_v1": Tiny("MobileNetV1ForImageClassification", "image 64", {"depth_multiplier": 0.25}),
    "mobilenet_v2": Tiny("MobileNetV2ForImageClassification", "image 64", {"depth_multiplier": 0.25}),
    "efficientnet": Tiny(
        "EfficientNetForImageClassification",
        "image 64",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
        },
    ),
    "levit": Tiny(
        "LevitForImageClassification",
        "image 64",
        {
            "image_size": 64,
            "patch_size": 16,
            "hidden_sizes": [16, 32, 48],
            "depths": [1, 1, 1],
            "num_attention_heads": [2, 2, 4],
            "key_dim": [8, 8, 8],
        },
    ),
    "pvt": Tiny(
        "PvtForImageClassification",
        "image 64",
        {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    ),
    "pvt_v2": Tiny(
        "PvtV2ForImageClassification",
        "image 64",
        {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    ),
    "cvt": Tiny(
        "CvtForImageClassification", "image 64", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}
    ),
    "focalnet": Tiny(
        "FocalNetForImageClassification",
        "image 64",
        {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1]},
    ),
    "hiera": Tiny(
        "HieraForImageClassification", "image 64", {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2, 1]}
    ),
    "swiftformer": Tiny(
        "SwiftFormerForImageClassification",
        "image 64",
        {"embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "image_size": 64},
    ),
    "dpt": Tiny(
        "DPTForDepthEstimation",
        "image",
        {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 20, 24, 28],
            "fusion_hidden_size": 18,
        },
    ),
    "glpn": Tiny(
        "GLPNForDepthEstimation",
        "image 64",
        {
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 24,
        },
    ),
    "yolos": Tiny("YolosForObjectDetection", "image", {"image_size": [32, 32], "num_detection_tokens": 5}),
    "detr": Tiny(
        "DetrForObjectDetection",
        "image 64",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": _resnet("stage4"),
        },
    ),
    "conditional_detr": Tiny(
        "ConditionalDetrForObjectDetection",
        "image 64",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": _resnet("stage4"),
        },
    ),
    "deformable_detr": Tiny(
        "DeformableDetrForObjectDetection",
        "image 64",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "d_model": 64,
            "backbone_config": _resnet("stage2", "stage3", "stage4"),
        },
    ),
    # images and text
    "clip": Tiny("CLIPModel", "image and text"),
    "siglip": Tiny("SiglipModel", "image and text"),
    "blip": Tiny("BlipForConditionalGeneration", "image and text", {"text_config": {"encoder_hidden_size": 48}}),
    "altclip": Tiny("AltCLIPModel", "image and text"),
    "chinese_clip": Tiny("ChineseCLIPModel", "image and text"),
    "clipseg": Tiny("CLIPSegForImageSegmentation", "image and text", {"extract_layers": [0, 1]}),
    "git": Tiny("GitForCausalLM", "image and text"),
    "flava": Tiny("FlavaModel", "image and text"),
    "vilt": Tiny("ViltForQuestionAnswering", "image and text"),
    # sounds
    "whisper": Tiny("WhisperForConditionalGeneration", "spectrum to text", {"num_mel_bins": 20}),
    "wav2vec2": Tiny("Wav2Vec2ForCTC", "wave", _WAVE),
    "wav2vec2-layer-norm": Tiny(
        "Wav2Vec2ForCTC", "wave", {**_WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    ),
    "hubert": Tiny("HubertForCTC", "wave", _WAVE),
    "wavlm": Tiny("WavLMForCTC", "wave", _WAVE),
    "data2vec-audio": Tiny("Data2VecAudioForCTC", "wave", _WAVE),
    "unispeech": Tiny("UniSpeechForCTC", "wave", _WAVE),
    "unispeech-sat": Tiny("UniSpeechSatForCTC", "wave", _WAVE),
    "sew": Tiny("SEWForCTC", "wave"),
    "sew-d": Tiny("SEWDForCTC", "wave"),
    "wav2vec2-conformer": Tiny("Wav2Vec2ConformerForCTC", "wave", {**_WAVE, "vocab_size": 99}),
    "speech_to_text": Tiny("Speech2TextForConditionalGeneration", "features to text"),
    "audio-spectrogram-transformer": Tiny("ASTForAudioClassification", "spectrogram"),
    "speecht5": Tiny("SpeechT5ForSpeechToText", "wave to text", _WAVE),
    "moonshine": Tiny("MoonshineForConditionalGeneration", "wave to text"),
    # series
    "patchtst": Tiny("PatchTSTForPrediction", "series"),
    "patchtsmixer": Tiny("PatchTSMixerForPrediction", "series"),
    "timesformer": Tiny("TimesformerForVideoClassification", "video"),
    "videomae": Tiny("VideoMAEForVideoClassification", "video"),
    "vivit": Tiny("VivitForVideoClassification", "video"),
}
