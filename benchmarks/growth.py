"""What tracing costs as models grow: a ViT four times as wide, and Llama-shaped models of 70 billion parameters.

    python benchmarks/growth.py
    python benchmarks/growth.py --write     # and keep the rows, and docs/speed.md

All on meta tensors, which have shapes and no values. The ViT's time is the ratio of the medians of interleaved runs. A
Llama is traced and planned (half of every axis, in random order, since there are no weights to score) in a process of
its own, whose peak resident memory is told with the imports and the model. The one of transformers runs where it can
be imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from topiarist.models import VisionTransformer

Row = dict[str, Any]
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "growth.json"
SIZES = {"hidden": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "intermediate": 28672, "vocabulary": 128256}


def main() -> None:
    """Measure, print, and keep what is asked to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/growth.json and docs/speed.md")
    parser.add_argument("--llama", choices=["plain", "transformers"], help="this one, in this process; prints JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.llama:
        print(json.dumps(llama(chosen.llama)))
        return
    rows = [wider_vit(chosen.rounds)]
    print(f"ViT, width × 4: trace time × {rows[0]['ratio']:.2f}")
    for kind in ("plain", "transformers"):
        if kind == "transformers" and importlib.util.find_spec("transformers") is None:
            print("transformers' Llama skipped: transformers cannot be imported")
            continue
        done = subprocess.run([sys.executable, __file__, "--llama", kind], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{rows[-1]['name']}: {rows[-1]['seconds']:.1f} s, {rows[-1]['gib']:.2f} GiB")
    if chosen.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n")
        sys.path.insert(0, str(HERE / "results"))
        from page import write_page

        write_page()


def wider_vit(rounds: int) -> Row:
    """The time to trace a ViT of four times the width against that of the plain one."""
    times: dict[int, list[float]] = {192: [], 768: []}
    for turn in range(rounds + 1):  # the first one warms up
        for dim, seconds in times.items():
            with torch.device("meta"):
                model = VisionTransformer(
                    image_size=224, patch_size=16, dim=dim, depth=12, num_heads=3, num_hidden=4 * dim, num_classes=1000
                )
                x = torch.zeros(1, 3, 224, 224)
            gc.collect()
            start = time.process_time()
            topiarist.trace(model, x)
            if turn:
                seconds.append(time.process_time() - start)
    narrow, wide = (statistics.median(seconds) for seconds in times.values())
    return {"name": "ViT, width 192 to 768", "ratio": round(wide / narrow, 3)}


def llama(kind: str) -> Row:
    """Trace and plan one of 70 billion parameters on the meta device."""
    with torch.device("meta"):
        model = Llama(**SIZES) if kind == "plain" else transformers_llama()
        ids = torch.zeros(1, 16, dtype=torch.long)
    inputs: Any = ids
    if kind == "transformers":  # given no complete mask it looks into values, which meta tensors lack
        mask = torch.ones(1, 1, 16, 16, dtype=torch.bool, device="meta")
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "return_dict": False}
    start = time.perf_counter()
    plan = topiarist.plan(
        model,
        inputs,
        structure="channel",
        saliency="random",
        allocation="uniform",
        budget=topiarist.Budget(sparsity=0.5),
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {
        "name": f"Llama of 70 B parameters, {'plain PyTorch' if kind == 'plain' else 'transformers'}",
        "num_params": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "gib": round(peak / 2**20, 2),
        "num_units": plan.num_units,
        "params": round(plan.achieved["params"], 3),
    }


def transformers_llama() -> nn.Module:
    """The model that the library builds from these sizes."""
    if importlib.util.find_spec("torchvision") is not None:  # then it has to be importable for transformers to be
        sys.path.insert(0, str(HERE.parent / "zoo"))
        from families import zoos

        zoos()["torchvision"].names()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=SIZES["hidden"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["kv_heads"],
        intermediate_size=SIZES["intermediate"],
        vocab_size=SIZES["vocabulary"],
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


class RMSNorm(nn.Module):
    """x / √(mean x² + ε), scaled."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, dim)."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class Attention(nn.Module):
    """Grouped queries: several heads share a key and a value; positions by rotation."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, tokens, dim) → (batch, tokens, dim)."""
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, self.head_dim).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        times, shape = self.heads // self.kv_heads, (b, self.heads, n, self.head_dim)
        k, v = (t[:, :, None].expand(b, self.kv_heads, times, n, self.head_dim).reshape(shape) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o(out.transpose(1, 2).reshape(b, n, -1))
        return result


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) over the last dimension."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Block(nn.Module):
    """Pre-norm: attention and a gated network (SwiGLU), each added to its input."""

    def __init__(self, dim: int, heads: int, kv_heads: int, intermediate: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = RMSNorm(dim), Attention(dim, heads, kv_heads), RMSNorm(dim)
        self.gate = nn.Linear(dim, intermediate, bias=False)
        self.up = nn.Linear(dim, intermediate, bias=False)
        self.down = nn.Linear(intermediate, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, tokens, dim) → (batch, tokens, dim)."""
        x = x + self.attention(self.norm1(x), cos, sin)
        y = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Llama(nn.Module):
    """The architecture of Llama 3 (Grattafiori et al. 2024) in plain PyTorch."""

    def __init__(self, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, intermediate) for _ in range(layers))
        self.norm = RMSNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        head_dim = hidden // heads
        self.register_buffer("frequencies", 500000 ** -(torch.arange(0, head_dim, 2).float() / head_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) → (batch, tokens, vocabulary)."""
        x = self.embed(ids)
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), self.frequencies)
        angles = torch.cat((angles, angles), -1)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        out: Tensor = self.head(self.norm(x))
        return out


if __name__ == "__main__":
    main()
