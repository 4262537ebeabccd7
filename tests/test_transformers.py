"""Models of transformers: pruned, saved by save_pretrained, and loaded by the stock class with the same outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import torch

import topiarist
from topiarist import Budget

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages under test
DOCS = Path(__file__).parents[1] / "docs"
CLASSES = (
    "BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
    "T5ForConditionalGeneration", "ViTForImageClassification", "WhisperForConditionalGeneration", "CLIPModel",
)  # fmt: skip


@pytest.fixture(scope="module")
def zoo():
    spec = importlib.util.spec_from_file_location("config_fields", DOCS / "config_fields.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.import_transformers()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers cannot be imported: {error}")
    return module


@pytest.mark.parametrize("name", CLASSES)
def test_the_stock_class_brings_the_same_model_back(zoo, name):
    line = zoo.row(name)
    assert line.endswith("| bit-equal |")
    assert line in (DOCS / "transformers.md").read_text().splitlines(), "run docs/config_fields.py"


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_heads_come_back_too(zoo, name):
    assert zoo.round_trip(*zoo.build(name), structure="head")[1] == "bit-equal"


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "LlamaForCausalLM", "CLIPModel"])
def test_the_callers_config_is_left_alone_and_the_copy_is_shared(zoo, name):
    model, inputs = zoo.build(name)
    before = model.config.to_dict()
    small = topiarist.prune(model, inputs, structure="channel", budget=Budget(params=0.9), uniform="config").model
    assert model.config.to_dict() == before
    assert small.config.to_dict() != before
    held = {id(m.config) for m in small.modules() if hasattr(m, "config")}
    assert len(held) == len({id(m.config) for m in model.modules() if hasattr(m, "config")})


def test_widths_of_their_own_do_not_fit_the_stock_class(zoo, tmp_path):
    model, inputs = zoo.build("BertForSequenceClassification")
    result = topiarist.prune(model, inputs, structure="channel", allocation={"*layer.0*": 0.5})
    assert result.loads_with == "topiarist.load"
    result.model.save_pretrained(tmp_path / "stock")
    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(tmp_path / "stock")
    topiarist.save(result.model, tmp_path / "own")
    again = topiarist.load(tmp_path / "own", build=lambda: zoo.build("BertForSequenceClassification")[0]).eval()
    pairs = zip(zoo.outputs(again, inputs), zoo.outputs(result.model.eval(), inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_code_of_the_page_prints_what_it_claims(zoo):
    code, claimed = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", (DOCS / "transformers.md").read_text(), re.DOTALL
    ).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "transformers.md", "exec"), {})  # noqa: S102 our own document
    assert printed.getvalue() == claimed
