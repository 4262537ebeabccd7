"""Self-adaptive networks against dense ones at batch 1, one thread: time beside cost, from small nets to large.

    python benchmarks/adaptive.py
    python benchmarks/adaptive.py --write     # and keep the rows, and docs/speed.md; --nets for some of them

The decisions are drawn at random, differ from image to image, and are shifted by one threshold until the mean cost is
what is asked: time depends on how many channels are open, not on which. Dense and adaptive nets take turns, one call of
one image each; a ratio is the median over turns of CPU seconds over those of the dense net's call beside it. `fresh`
takes the weights out for every image; `remembered` is `SelfAdaptive.remembering`, on images whose decisions come again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.mask import SelfAdaptive
from topiarist.measure import macs
from topiarist.models import build
from topiarist.models.vgg import vgg16_bn

Row = dict[str, Any]
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "adaptive.json"
COSTS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.2)
NUM_IMAGES, HALVINGS, FARTHEST, CLOSE = 16, 24, 1e3, 0.02
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the side of the image
    "ResNet-20": (lambda: build("resnet20"), 32),
    "VGG-16, a quarter as wide": (lambda: vgg16_bn(width=0.25), 32),
    "VGG-16, half as wide": (lambda: vgg16_bn(width=0.5), 32),
    "VGG-16": (vgg16_bn, 32),
    "VGG-16, half as wide, 96²": (lambda: vgg16_bn(width=0.5), 96),
}


def main() -> None:
    """Time, print, and keep what is asked to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to time each cost")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/adaptive.json and docs/speed.md")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--round-to", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in chosen.nets:
        torch.manual_seed(0)
        make, side = NETS[name]
        dense, images = make().eval(), torch.randn(NUM_IMAGES, 3, side, side)
        per_layer = macs(dense, images[:1]).total / sum(isinstance(m, nn.Conv2d) for m in dense.modules())
        for cost in COSTS:
            model = SelfAdaptive(dense, images[:1], round_to=chosen.round_to).eval()
            found = shifted(model, images, cost)
            if abs(found - cost) > CLOSE:
                print(f"{name}: no threshold costs {cost:g}, nearest is {found:.2f}")
                continue
            ratios = timed(dense, model, images, chosen.seconds)
            rows.append({"net": name, "macs_per_convolution": round(per_layer), "cost": cost, **ratios})
            said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            print(f"{name}, {per_layer / 1e6:.1f} M MACs a convolution, cost {cost:g}: {said}", flush=True)
    if chosen.write:
        rows = [row for row in kept() if row["net"] not in chosen.nets] + rows
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n")
        sys.path.insert(0, str(RESULTS.parent))
        from page import write_page

        write_page()


def kept() -> list[Row]:
    """The rows of before."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


@torch.inference_mode()
def timed(dense: nn.Module, model: SelfAdaptive, images: Tensor, seconds: float) -> dict[str, float]:
    """The times of single images over those of the dense net, fresh and remembered."""
    again = copy.deepcopy(model)
    nets = {"dense": dense, "fresh": model, "remembered": again}
    times: dict[str, list[float]] = {name: [] for name in nets}
    with again.remembering(NUM_IMAGES):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["dense"]) < 2 * NUM_IMAGES:
            x = images[len(times["dense"]) % NUM_IMAGES][None]
            for name, net in nets.items():
                start = time.thread_time()
                net(x)
                times[name].append(time.thread_time() - start)
    turns = range(NUM_IMAGES, len(times["dense"]))  # the first ones warm up
    return {
        name: round(statistics.median(times[name][i] / times["dense"][i] for i in turns), 3)
        for name in ("fresh", "remembered")
    }


@torch.inference_mode()
def shifted(model: SelfAdaptive, images: Tensor, cost: float) -> float:
    """Draw decisions and shift them to a mean cost of the images, which is returned; at 1 all channels are open."""
    if cost == 1:
        model.shift(-FARTHEST)
        return 1.0
    for decision in model.decisions.values():
        nn.init.normal_(decision.squeeze.weight, std=3.0)
        for tensor in decision.excite.parameters():
            nn.init.normal_(tensor)
    low, high = -FARTHEST, FARTHEST
    for _ in range(HALVINGS):
        model.shift((low + high) / 2)
        model(images)
        found = float(model.cost().mean())
        low, high = ((low + high) / 2, high) if found > cost else (low, (low + high) / 2)
    return found


if __name__ == "__main__":
    main()
