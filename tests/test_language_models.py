"""Language models against loops in NumPy, and the texts they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import topiarist
from topiarist.data import Segments, load_data, read_characters
from topiarist.errors import InputError
from topiarist.models import LANGUAGE_MODELS, SRU, TransformerXL, build
from topiarist.models.transformer_xl import RelativeAttention

SMALL = {"transformer-xl": {"dim": 16, "num_layers": 2, "num_heads": 2, "num_hidden": 24}}
TEXT = "to be or not to be, that is the question: " * 40


def small(name):
    torch.manual_seed(0)
    return LANGUAGE_MODELS[name](11, **SMALL.get(name, {"dim": 16}))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_parameter_learns_and_nothing_sees_the_future(name):
    model = small(name)
    tokens = torch.randint(11, (2, 9))
    logits = model(tokens)
    assert logits.shape == (2, 11, 9)
    F.cross_entropy(logits, tokens).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    changed = torch.cat((tokens[:, :5], (tokens[:, 5:] + 1) % 11), dim=1)
    torch.testing.assert_close(model(tokens)[..., :5], model(changed)[..., :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(tokens)[..., 5:], model(changed)[..., 5:])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_are_pruned_and_proved(name):
    result = topiarist.prune(
        small(name), torch.zeros(2, 6, dtype=torch.long), structure="channel", budget=topiarist.Budget(sparsity=0.4)
    )
    assert result.verification.passed
    assert result.plan.num_removed > 0


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_sru_against_a_loop():
    torch.manual_seed(0)
    layer = SRU(3, num_projected=2).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.bias += torch.randn(2, 3, dtype=torch.float64)
    project, product = layer.project.weight.detach().numpy(), layer.product.weight.detach().numpy()
    (v_f, v_r), (b_f, b_r) = layer.recurrent.detach().numpy(), layer.bias.detach().numpy()

    def loop(inputs):
        hidden = np.zeros_like(inputs)
        for b, sequence in enumerate(inputs):
            cell = np.zeros(3)
            for t, now in enumerate(sequence):
                u, f, r = np.split(product @ (project @ now), 3)
                f, r = sigmoid(f + v_f * cell + b_f), sigmoid(r + v_r * cell + b_r)
                cell = f * cell + (1 - f) * u
                hidden[b, t] = r * cell + (1 - r) * now
        return hidden

    np.testing.assert_allclose(layer(x).detach().numpy(), loop(x.numpy()), rtol=1e-12)
    v_r = v_r + 1e-3
    assert not np.allclose(layer(x).detach().numpy(), loop(x.numpy()), rtol=1e-6)


def test_relative_attention_against_a_loop():
    torch.manual_seed(0)
    attention = RelativeAttention(8, 2).double()
    torch.nn.init.normal_(attention.content_bias)
    torch.nn.init.normal_(attention.position_bias)
    x, memory = torch.randn(4, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    positions = torch.randn(7, 8, dtype=torch.float64)  # row p is the distance 6 − p
    w = {name: p.detach().numpy() for name, p in attention.named_parameters()}
    both, out = np.concatenate([memory, x]), np.zeros((4, 8))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        for i in range(4):
            query = w["query.weight"][part] @ x.numpy()[i]
            scores = []
            for j in range(i + 4):
                distance = (i + 3) - j
                key = w["key.weight"][part] @ both[j]
                place = w["position.weight"][part] @ positions.numpy()[6 - distance]
                scores.append((query + w["content_bias"][h]) @ key + (query + w["position_bias"][h]) @ place)
            e = np.exp(np.array(scores) / 2)
            out[i, part] = sum(a * (w["value.weight"][part] @ both[j]) for j, a in enumerate(e / e.sum()))
    found = attention(x[None], memory[None], positions)[0].detach().numpy()
    np.testing.assert_allclose(found, out @ w["output.weight"].T, rtol=1e-10)
    swapped = attention(x[None], memory[None], positions.flip(0))[0].detach().numpy()
    assert not np.allclose(swapped, found, rtol=1e-6)


def test_a_memory_continues_the_text():
    """Of one layer, two segments with a memory are one text: the memory holds all that the second half attends to."""
    torch.manual_seed(0)
    model = TransformerXL(11, dim=16, num_layers=1, num_heads=2, num_hidden=8).double().eval()
    tokens = torch.randint(11, (2, 10))
    first, memory = model.with_memory(tokens[:, :6], model.no_memory(tokens))
    second, _ = model.with_memory(tokens[:, 6:], memory)
    torch.testing.assert_close(torch.cat((first, second), 2), model(tokens), rtol=1e-10, atol=1e-12)
    forgotten, _ = model.with_memory(tokens[:, 6:], model.no_memory(tokens))
    assert not torch.allclose(forgotten, second)


def test_text_is_divided_and_read_in_order(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    train, validation, test, vocabulary = read_characters(path)
    assert "".join(vocabulary[i] for i in torch.cat((train, validation, test))) == TEXT
    assert (len(train), len(test)) == (int(0.9 * len(TEXT)), int(0.05 * len(TEXT)))
    streams = [inputs for inputs, _ in Segments(train, 4, 16)]
    whole = torch.cat(streams, dim=1)
    size = (len(train) - 1) // 4
    for stream in range(4):
        assert torch.equal(whole[stream], train[stream * size :][: whole.shape[1]])
    for inputs, targets in Segments(train, 4, 16, shuffle=True):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_shuffled_segments_are_a_function_of_seed_and_epoch():
    tokens = torch.randint(5, (500,))
    one, other = Segments(tokens, 2, 8, shuffle=True, seed=1), Segments(tokens, 2, 8, shuffle=True, seed=1)
    next(iter(other))
    assert not torch.equal(next(iter(one))[0], next(iter(other))[0])
    one.set_epoch(3), other.set_epoch(3)
    assert torch.equal(next(iter(one))[0], next(iter(other))[0])


def test_bytes_and_characters_differ_where_characters_have_several(tmp_path: Path):
    path = tmp_path / "enwik8"
    path.write_text("naïve " * 600)
    assert len(read_characters(path)[3]) == 6
    assert len(read_characters(path, as_bytes=True)[3]) == 7
    data = load_data(str(path), batch_size=1)
    assert data.num_classes == 7
    assert build("lstm", num_classes=7)(data.example_inputs).shape[1] == 7


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no file"), (b"\xff\xfe\xff", "UTF-8"), (b"short", "too few"), (b"x" * 60, "too few")]
)
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_data(str(path))
