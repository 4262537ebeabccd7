"""Channels by sample: skipped is masked, the cost is what is counted, open is the whole network, and it learns."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.mask import SelfAdaptive
from topiarist.mask.adaptive import AdaptiveLayer, Decision
from topiarist.measure import macs
from topiarist.methods import self_adaptive
from topiarist.methods.self_adaptive import mean_cost, variance
from topiarist.models import DigitsNet
from topiarist.testing.zoo import build

NETS = ["vgg_bn", "resnet_option_b", "depthwise", "dense_block", "squeeze_excite"]


def network(name):
    torch.manual_seed(0)
    model, inputs = build(name)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # constants that a mask in the wrong place would leak
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.double().eval(), inputs.double()


def adaptive(name, spread=3.0, round_to=1):
    """A network whose decisions differ between samples and channels."""
    model, inputs = network(name)
    made = SelfAdaptive(model, inputs, round_to=round_to).eval().double()
    for decision in made.decisions.values():
        nn.init.normal_(decision.excite.bias)
        nn.init.normal_(decision.excite.weight, std=spread)
    return model, made, torch.randn(6, *inputs.shape[1:], dtype=torch.float64)


@pytest.mark.parametrize("name", NETS)
def test_open_is_the_whole_network(name):
    model, made, x = adaptive(name)
    with made.opened(), torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made(x[:1]), model(x[:1]), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert not torch.allclose(made(x), model(x))


@pytest.mark.parametrize("round_to", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_skipping_is_masking(name, round_to):
    """One sample, of which closed channels are not computed, against the same in a batch, where they are zeroed."""
    _, made, x = adaptive(name, round_to=round_to)
    with torch.no_grad():
        together = made(x)
        for i in range(len(x)):
            torch.testing.assert_close(made(x[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)
    shares = torch.stack([layer.share for layer in made.layers])
    assert float(shares.min()) < 1


@pytest.mark.parametrize("name", NETS)
def test_remembering_is_skipping(name):
    """Decisions that come again take again what was taken out, also where some were forgotten between."""
    _, made, x = adaptive(name, round_to=3)
    with torch.no_grad():
        together = made(x)
        for num in (1, 2, 32):
            with made.remembering(num):
                for i in (*range(len(x)), *reversed(range(len(x))), 0, 0):
                    torch.testing.assert_close(made(x[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)
                assert all(len(layer.weights.values) <= num for layer in made.layers)
                assert any(len(layer.weights.values) > 0 for layer in made.layers)


def test_what_is_remembered():
    """The weights of before, until the ``with`` ends, and never where a gradient is asked for."""
    _, made, x = adaptive("vgg_bn")
    with made.remembering(), torch.no_grad():
        with torch.inference_mode():
            made(x[:1])
        before = made(x[:1])
        last = made.layers[-1]
        last.layer.weight.mul_(2)
        assert torch.equal(made(x[:1]), before)
        with torch.enable_grad():
            out = made(x[:1])
            assert not torch.allclose(out, before)
            for _ in range(2):
                made(x[:1]).sum().backward()
            assert bool(last.layer.weight.grad.any())
    with torch.no_grad():
        assert torch.equal(made(x[:1]), out)
    with pytest.raises(InputError, match="1 or more"), made.remembering(0):
        pass


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def test_what_is_open_is_not_taken_out():
    """Nothing is gathered where all is open; once weights are remembered only activations are."""
    _, made, x = adaptive("vgg_bn")
    with torch.no_grad():
        with made.opened(), Operators() as ran:
            made(x[:1])
        assert "convolution" in ran.names
        assert not {"index_select", "index_copy_", "new_zeros"} & set(ran.names)
        numbers = []
        with made.remembering():
            for _ in range(2):
                with Operators() as ran:
                    made(x[:1])
                numbers.append(ran.names.count("index_select"))
        assert numbers[1] == sum(bool(layer.reads) for layer in made.layers) < numbers[0]


@pytest.mark.parametrize("round_to", [1, 3, 4])
def test_channels_that_are_flattened(round_to):
    """Whole channels of a linear layer's inputs are left out, and rounded as channels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3))
    net = net.double().eval()
    nn.init.normal_(net[1].bias)
    made = SelfAdaptive(net, torch.zeros(1, 1, 4, 4).double(), round_to=round_to).double().eval()
    (decision,) = made.decisions.values()
    nn.init.normal_(decision.excite.weight, std=5.0)
    nn.init.zeros_(decision.excite.bias)
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        together, costs = made(x), made.cost()
        for i in range(8):
            whole = net[:3](x[i : i + 1]) * decision(x[i : i + 1]).view(1, -1, 1, 1)
            torch.testing.assert_close(together[i], net[3:](whole)[0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(made(x[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)
            counted = macs(made, x[i : i + 1]).total / macs(net, x[i : i + 1]).total
            assert float(costs[i]) == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("round_to", [1, 4])
def test_one_channel_is_left(round_to):
    """That of the largest saliency, alone as in a batch."""
    _, made, x = adaptive("vgg_bn", round_to=round_to)
    made.shift(1e6)
    with torch.no_grad():
        together = made(x)
        for i in range(len(x)):
            torch.testing.assert_close(made(x[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)
    assert all(d.computed.num_open == 1 for d in made.decisions.values())


def test_channels_computed_along_are_read_as_zeros(monkeypatch):
    """Sabotage: the channel that makes up a multiple is read for what it is."""
    _, made, x = adaptive("vgg_bn", round_to=3)
    with torch.no_grad():
        right = made(x[:1])
        monkeypatch.setattr(AdaptiveLayer, "_read", lambda self, x, o, read, dim: x.index_select(dim, read.channels))
        assert not torch.allclose(made(x[:1]), right)


@pytest.mark.parametrize("name", ["vgg_bn", "squeeze_excite"])
def test_reading_what_is_closed_is_noticed(name):
    """Sabotage: the layers after a decision read everything, so that the constants of norms leak."""
    _, made, x = adaptive(name)
    with torch.no_grad():
        right = made(x)
        for layer in made.layers:
            layer.reads = ()
        assert not torch.allclose(made(x), right)


@pytest.mark.parametrize("round_to", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_the_cost_is_what_is_counted(name, round_to):
    """Multiply–accumulates at batch 1, counted where torch executes them."""
    model, made, x = adaptive(name, round_to=round_to)
    with torch.no_grad():
        made(x)
        costs = made.cost()
        for i in range(3):
            counted = macs(made, x[i : i + 1]).total / macs(model, x[i : i + 1]).total
            made(x[i : i + 1])
            assert float(made.cost()) == pytest.approx(counted, rel=1e-12)
            assert float(costs[i]) == pytest.approx(counted, rel=1e-12)


def test_only_what_one_convolution_makes_is_decided_on():
    """Of a residual network the channels inside blocks, and none of the stream."""
    made = SelfAdaptive(DigitsNet(), torch.zeros(1, 1, 8, 8))
    assert sorted(made.decisions) == ["block1.conv1.weight:0", "block2.conv1.weight:0", "block3.conv1.weight:0"]
    with pytest.raises(InputError, match="nothing to skip"):
        SelfAdaptive(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.zeros(1, 2))
    with pytest.raises(InputError, match="1 or more"):
        SelfAdaptive(DigitsNet(), torch.zeros(1, 1, 8, 8), reduction=0)


def test_a_decision_by_hand():
    """s = W₂ relu(W₁ mean(x)) + bias by loops; open where positive, and at least where it is largest."""
    torch.manual_seed(0)
    decision = Decision("", 4, 6, 2).double().eval()
    nn.init.normal_(decision.excite.bias)
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    found = decision(x)
    for n in range(5):
        pooled = torch.tensor([float(x[n, c].sum()) / 9 for c in range(4)], dtype=torch.float64)
        hidden = (decision.squeeze.weight @ pooled + decision.squeeze.bias).clamp(min=0)
        s = decision.excite.weight @ hidden + decision.excite.bias
        assert found[n].tolist() == [float(v > 0 or v == s.max()) for v in s]
    decision.threshold.fill_(1e6)
    assert decision(x).sum(1).tolist() == [1.0] * 5


def test_decisions_in_training():
    """About half of the samples see 0 and 1, the others numbers between; 0.9 are open at first; the gradient goes
    through both."""
    torch.manual_seed(0)
    decision = Decision("", 4, 400, 2).train()
    nn.init.zeros_(decision.excite.weight)
    found = decision(torch.randn(200, 4))
    binary = ((found == 0) | (found == 1)).all(1).double().mean()
    assert float(binary) == pytest.approx(0.5, abs=0.15)  # 4 σ of 200 coins
    hard = found[((found == 0) | (found == 1)).all(1)]
    assert float(hard.mean().detach()) == pytest.approx(0.9, abs=0.01)
    for rows in (found[0], found[-1]):
        (slope,) = torch.autograd.grad(rows.sum(), decision.excite.bias, retain_graph=True)
        assert bool((slope > 0).any())


def test_decisions_learn_from_the_loss_alone():
    torch.manual_seed(0)
    made = SelfAdaptive(DigitsNet(), torch.zeros(2, 1, 8, 8)).train()
    F.cross_entropy(made(torch.rand(8, 1, 8, 8)), torch.arange(8)).backward()
    for decision in made.decisions.values():
        for layer in (decision.squeeze, decision.excite):
            assert bool(layer.weight.grad.any())


def test_a_copy_is_on_its_own():
    _, made, x = adaptive("vgg_bn")
    made.train()(x).sum().backward()
    twin = copy.deepcopy(made).eval()
    wanted = made.eval()(x)
    for decision in made.decisions.values():
        decision.threshold.fill_(5.0)
    torch.testing.assert_close(twin(x), wanted)
    assert not torch.allclose(made(x), wanted)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images, labels = topiarist.data.digits()[0]
    batches = topiarist.data.Batches(images[:512], labels[:512], batch_size=64, shuffle=True)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    recipe = topiarist.recover.TrainingRecipe(epochs=3, lr=0.05)
    topiarist.recover.train(net, batches, F.cross_entropy, recipe)
    return net, batches


def test_the_mean_cost_is_the_budget(trained, tmp_path):
    net, batches = trained
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    result = self_adaptive(
        net, batches.examples(), data=batches, loss=F.cross_entropy, budget=Budget(macs=0.6), epochs=2, round_to=1,
        evaluate=lambda m: {"accuracy": _accuracy(m, batches)},
    )  # fmt: skip
    assert mean_cost(result.model, batches) == pytest.approx(0.6, rel=0.011)
    assert result.plan.achieved["macs"] == pytest.approx(mean_cost(result.model, batches), rel=1e-6)
    assert result.curve[0]["accuracy"] > 0.7
    assert len(result.history) == 16
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x = batches.examples(64)
    with torch.no_grad():
        result.model.eval()(x)
        assert variance(result.model) > 0  # not all samples alike
        topiarist.save(result.model, tmp_path / "net")
        again = topiarist.load(tmp_path / "net", build=lambda: SelfAdaptive(net, batches.examples(), round_to=1))
        torch.testing.assert_close(again.eval()(x), result.model(x))


def _accuracy(model, batches):
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / 512


def test_what_cannot_be_is_refused(trained):
    net, batches = trained
    options = {"data": batches, "loss": F.cross_entropy, "epochs": 0}
    with pytest.raises(BudgetError, match="nearest is macs"):
        self_adaptive(net, batches.examples(), budget=Budget(macs=0.01), **options)
    with pytest.raises(InputError, match="counted in macs"):
        self_adaptive(net, batches.examples(), budget=Budget(sparsity=0.5), **options)
    with pytest.raises(InputError, match="no batch"):
        mean_cost(SelfAdaptive(net, batches.examples()), [])
