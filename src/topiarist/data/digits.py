"""The embedded data set: 1797 handwritten digits of 8×8 pixels (Alpaydin and Kaynak 1998), from scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_TEST = 360


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test), each images (num, 1, 8, 8) in [0, 1] and labels (num,); always the same stratified split.

    Example:
        >>> (images, labels), test = digits()
        >>> images.shape, labels.shape, test[0].shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([1437]), torch.Size([360, 1, 8, 8]))
    """
    from sklearn.datasets import load_digits  # a second of import time, for those who want these data
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = torch.from_numpy(raw.images / 16).to(torch.float32).unsqueeze(1)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    train, test = train_test_split(torch.arange(len(labels)), test_size=NUM_TEST, random_state=0, stratify=labels)
    return (images[train], labels[train]), (images[test], labels[test])
