"""A character model on Shakespeare: magnitude, Wanda and SparseGPT, one-shot, at half the weights and at 2:4.

    python bench/experiments/character_model.py --data ../shared/data

A transformer of four blocks is trained here on nine tenths of the text; the loss is that on the last tenth.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import HERE, Table, arguments, markdown, mean_std
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import topiarist
from topiarist.saliency import SparseGPT

WIDTH, HEADS, BLOCKS, CONTEXT = 96, 4, 4, 64
STEPS, BATCH, LR, WARM_UP = 1500, 16, 2e-3, 100
NUM_CALIBRATION, NUM_TEST = 128, 512
CRITERIA = {
    "magnitude": ("l2", "l2", False),
    "Wanda": ("wanda", "wanda", False),
    "Wanda, in turn": ("wanda", "wanda", True),
    "SparseGPT": (SparseGPT(), SparseGPT(pattern="2:4"), False),
    "SparseGPT, in turn": (SparseGPT(), SparseGPT(pattern="2:4"), True),
}


class Block(nn.Module):
    """Causal attention and an MLP, each after a norm and beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharacterModel(nn.Module):
    """Logits of the next character, (batch, characters, vocabulary)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Text:
    """The characters as numbers, split nine to one."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.characters = sorted(set(text))
        number = {c: i for i, c in enumerate(self.characters)}
        numbers = torch.tensor([number[c] for c in text])
        self.train, self.test = numbers[: len(numbers) * 9 // 10], numbers[len(numbers) * 9 // 10 :]

    def batch(self, part: Tensor, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences, and the character after each of theirs."""
        starts = torch.randint(len(part) - CONTEXT, (num,), generator=generator)
        rows = part[starts[:, None] + torch.arange(CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]


def trained(text: Text, seed: int, steps: int = STEPS) -> nn.Module:
    """The model of a seed; trained once and kept beside the runs."""
    torch.manual_seed(seed)
    name = f"characters-{seed}" if steps == STEPS else f"characters-{seed}-{steps}"
    model, kept = CharacterModel(len(text.characters)), HERE.parents[1] / "runs" / "evidence" / name
    if kept.exists():
        model.load_state_dict(load_file(kept))
        return model.eval()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1)
    for step in range(steps):
        warm, done = min(1.0, (step + 1) / WARM_UP), step / steps
        optimizer.param_groups[0]["lr"] = LR * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        inputs, targets = text.batch(text.train, BATCH, generator)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), kept)
    return model.eval()


@torch.no_grad()
def measured(model: nn.Module, text: Text) -> dict[str, Any]:
    """Loss in nats a character and accuracy in percentage points, on the same sequences each time."""
    inputs, targets = text.batch(text.test, NUM_TEST, torch.Generator().manual_seed(0))
    outputs = torch.cat([model(part) for part in inputs.split(64)])
    loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).item()
    accuracy = 100 * (outputs.argmax(-1) == targets).double().mean().item()
    return {"loss": loss, "accuracy": accuracy, "summary": f"{loss:.4f}"}


def cut(model: nn.Module, text: Text, seed: int, name: str, structure: str) -> dict[str, Any]:
    """Half of the weights of every linear layer but the last, and what the model is then worth."""
    inputs, _ = text.batch(text.train, NUM_CALIBRATION, torch.Generator().manual_seed(1000 + seed))
    half, pattern, sequential = CRITERIA[name]
    result = topiarist.prune(
        model, inputs[:2], structure=structure, saliency=half if structure == "weight" else pattern,
        allocation="uniform", budget=topiarist.Budget(sparsity=0.5), keep=["head"], data=list(inputs.split(32)),
        sequential=sequential,
    )  # fmt: skip
    return {**measured(result.model, text), "sparsity": result.plan.achieved["sparsity"]}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "text")
    table, text = Table("character_model"), Text(Path(chosen.folder) / "tinyshakespeare.txt")
    for seed in range(chosen.seeds):
        model = trained(text, seed)
        table.run(f"{seed}/dense", partial(measured, model, text))
        for name in CRITERIA:
            for structure in ("weight", "2:4"):
                table.run(f"{seed}/{name}/{structure}", partial(cut, model, text, seed, name, structure))
    (HERE / "character_model.md").write_text(render(table), encoding="utf-8")


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    seeds = sorted({key.partition("/")[0] for key in table.cells})

    def of(name: str, quantity: str) -> list[float]:
        return [table.cells[f"{seed}/{name}"][quantity] for seed in seeds]

    rows = [["dense", mean_std(of("dense", "loss"), 3), mean_std(of("dense", "accuracy"), 1), "", ""]]
    rows += [
        [name, *(mean_std(of(f"{name}/{structure}", quantity), digits)
                 for structure in ("weight", "2:4") for quantity, digits in (("loss", 3), ("accuracy", 1)))]
        for name in CRITERIA
    ]  # fmt: skip
    spread = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds, mean ± sample standard deviation"
    perplexity = math.exp(statistics.mean(of("dense", "loss")))
    text = (
        "# A character model on Shakespeare: half of the weights, one-shot, no training\n\n"
        f"A transformer of {BLOCKS} blocks, width {WIDTH}, context {CONTEXT}, {STEPS} steps of training; "
        f"{spread}; dense perplexity {perplexity:.2f} a character. Every linear layer "
        f"but the last loses half of its weights; {NUM_CALIBRATION} sequences of the training text calibrate. *In "
        "turn* means that layers see inputs from those already pruned. Loss in nats a character, accuracy of the next "
        "one in percentage points, on text not seen. Generated from `character_model.json` by "
        "`python bench/experiments/character_model.py --data ../shared/data`.\n\n"
    )
    header = ["criterion", "loss, sparsity 0.5", "accuracy, sparsity 0.5", "loss, 2:4", "accuracy, 2:4"]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main()
