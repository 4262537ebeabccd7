"""Which fields of which config can shrink: tiny models of transformers, pruned with ``uniform="config"``, saved with
``save_pretrained`` and loaded with the stock ``from_pretrained``. Writes the table of docs/transformers.md.

    make zoo's environment, then: .venv-zoo/bin/python docs/config_fields.py
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topiarist
from topiarist.graph import trace

PAGE = Path(__file__).with_name("transformers.md")
ZOO = str(Path(__file__).parents[1] / "zoo")

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {"hidden_size": 32, "intermediate_size": 48, **LAYERS}
TEXT = {**SIZES, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
SPEECH = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip

# model class → what its config is given beside defaults
FAMILIES: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": TEXT,
    "RobertaForMaskedLM": TEXT,
    "ElectraForSequenceClassification": TEXT,
    "AlbertForMaskedLM": {**TEXT, "embedding_size": 16},
    "DistilBertForSequenceClassification": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 40},
    "GPT2LMHeadModel": {
        "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2,
    },
    "OPTForCausalLM": {
        "hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 32, **LAYERS,
        "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "GPTNeoXForCausalLM": TEXT,
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40},
    "PhiForCausalLM": TEXT,
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 8},
    "GemmaForCausalLM": {**GROUPED, "head_dim": 8},
    "T5ForConditionalGeneration": {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 40, "pad_token_id": 0,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": {**SPEECH, "max_position_embeddings": 32},
    "WhisperForConditionalGeneration": {
        **SPEECH, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16,
    },
    "ViTForImageClassification": IMAGE,
    "DeiTForImageClassification": IMAGE,
    "Dinov2ForImageClassification": {**IMAGE, "mlp_ratio": 2},
    "CLIPModel": {
        "text_config": {**TEXT, "max_position_embeddings": 16}, "vision_config": IMAGE, "projection_dim": 24,
    },
    "ConvNextForImageClassification": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
}  # fmt: skip


def import_transformers() -> Any:
    """The package; with a torchvision that has no compiled operators it can be imported once two are declared."""
    if ZOO not in sys.path:
        sys.path.append(ZOO)
    from families import declare_missing_operators

    declare_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model with random weights, and inputs for it."""
    torch.manual_seed(0)
    kind = getattr(import_transformers(), name)
    model = kind(kind.config_class(**FAMILIES[name])).eval()
    return model, _inputs(model)


def _inputs(model: nn.Module) -> dict[str, Any]:
    ids, config = torch.randint(3, 40, (2, 7)), model.config
    ids[:, -1] = 2
    names = model.main_input_name, *(["pixel_values"] if hasattr(config, "vision_config") else [])
    known = {
        "input_ids": ids,
        "pixel_values": torch.randn(2, 3, *(2 * [getattr(config, "image_size", 16)])),
        "input_features": torch.randn(2, 8, 40),
    }
    found = {name: known[name] for name in names}
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = ids
    if getattr(config, "use_cache", False):
        found["use_cache"] = False  # a cache is an output: its heads would have to stay
    return found


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Every tensor that the model returns."""
    with torch.no_grad():
        return [t for t in model(**inputs).to_tuple() if isinstance(t, Tensor)]


def shrinkable(model: nn.Module, inputs: dict[str, Any]) -> list[str]:
    """The fields that can shrink, those that only go together joined by ``+``, each with the smallest step."""
    moves = trace(model, inputs, "config").moves
    return [" + ".join(f"`{_field(path)}` −{n}" for path, n in move.less.items()) for move in moves]


def _field(path: str) -> str:
    return path.removeprefix("config->").replace("->", ".")


def round_trip(model: nn.Module, inputs: dict[str, Any], structure: str = "channel") -> tuple[str, str]:
    """Prune half of the units; the sizes before and after, and whether the stock class brings the same outputs back."""
    result = topiarist.prune(
        model, inputs, structure=structure, allocation="uniform", budget=topiarist.Budget(sparsity=0.5),
        uniform="config",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result.model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).eval()
    pairs = zip(outputs(result.model.eval(), inputs), outputs(again, inputs), strict=True)
    same = "bit-equal" if all(torch.equal(a, b) for a, b in pairs) else "DIFFERENT"
    return f"{result.plan.achieved['params']:.2f}", same if result.verification.passed else "NOT VERIFIED"


def row(name: str) -> str:
    """One line of the table."""
    model, inputs = build(name)
    try:
        fields = shrinkable(model, inputs)
        params, same = round_trip(*build(name)) if fields else ("1.00", "–")
    except topiarist.TopiaristError as error:
        return f"| `{name}` | {type(error).__name__}: {' '.join(str(error).split())[:120]} | – | – |"
    return f"| `{name}` | {', '.join(fields) or 'none'} | {params} | {same} |"


def main() -> None:
    """Print the table, and put it into the page."""
    lines = ["| class | fields that can shrink, and by how much at a time | parameters left | loaded again |",
             "|---|---|---|---|"]  # fmt: skip
    for name in sys.argv[1:] or FAMILIES:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if not sys.argv[1:]:
        text = PAGE.read_text(encoding="utf-8")
        marked = re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text,
                        flags=re.DOTALL)  # fmt: skip
        PAGE.write_text(marked, encoding="utf-8")


if __name__ == "__main__":
    main()
