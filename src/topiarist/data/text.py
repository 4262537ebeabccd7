"""Text as characters or bytes, in streams: what language models are trained and tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import InputError

_TRAIN, _TEST = 0.9, 0.05  # the shares of enwik8 (Graves 2013): 90 million bytes, 5 to choose by and the last 5 to test


def read_characters(path: str | Path, *, as_bytes: bool = False) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """The tokens of a text file for training, validation and test, and what each token stands for.

    A token is a character of the file (UTF-8), or with ``as_bytes`` a byte, as the literature reads enwik8; tokens are
    numbered in the order of their code points. The first 0.9 are for training, the last 0.05 for the test.

    Returns:
        int64 of shape (num_tokens,) three times, and the vocabulary.

    Raises:
        InputError: there is no such file, it is not UTF-8, or too short to be divided.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "text.txt")
        >>> _ = path.write_text("abcab" * 8)
        >>> train, validation, test, vocabulary = read_characters(path)
        >>> len(train), len(validation), test.tolist(), vocabulary
        (36, 2, [0, 1], ['a', 'b', 'c'])
    """
    try:
        raw = Path(path).read_bytes()
        codes = np.frombuffer(raw if as_bytes else raw.decode().encode("utf-32-le"), np.uint8 if as_bytes else "<u4")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; name a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); try as_bytes=True") from error
    found, numbers = np.unique(codes, return_inverse=True)
    tokens = torch.from_numpy(numbers.astype(np.int64).reshape(-1))
    first, last = int(_TRAIN * len(tokens)), len(tokens) - int(_TEST * len(tokens))
    if last == len(tokens) or first == last:
        raise InputError(f"{path} has {len(tokens)} tokens, too few to divide into training, validation and test")
    return tokens[:first], tokens[first:last], tokens[last:], [chr(code) for code in found]


class Segments:
    """Consecutive segments of a text, ``batch_size`` streams side by side: a loader of ``(inputs, targets)``.

    Both are int64 of shape (batch_size, length), targets one token later. Segment k + 1 of a stream goes on where
    segment k ends, so that a model with a memory reads each stream as one text. With ``shuffle`` segments begin
    anywhere instead, as a function of ``seed`` and epoch, as many as one pass would have.

    Raises:
        InputError: the text is too short for a single batch.

    Example:
        >>> segments = Segments(torch.arange(9), batch_size=2, length=2)
        >>> [(inputs.tolist(), targets.tolist()) for inputs, targets in segments]
        [([[0, 1], [4, 5]], [[1, 2], [5, 6]]), ([[2, 3], [6, 7]], [[3, 4], [7, 8]])]
    """

    def __init__(
        self, tokens: Tensor, batch_size: int = 32, length: int = 128, *, shuffle: bool = False, seed: int = 0
    ) -> None:
        if batch_size < 1 or length < 1 or (len(tokens) - 1) // batch_size < length:
            raise InputError(
                f"{len(tokens)} tokens are too few for batches of {batch_size} segments of {length}, or one is below 1"
            )
        self.tokens, self.batch_size, self.length, self.shuffle, self.seed = tokens, batch_size, length, shuffle, seed
        self._stream = (len(tokens) - 1) // batch_size
        self._epoch = 0

    def __len__(self) -> int:
        """The number of batches; what is left at the end of each stream is not read."""
        return self._stream // self.length

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be iterated; they count on from there."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = int(np.random.SeedSequence((self.seed, self._epoch)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        self._epoch += 1
        streams = torch.arange(self.batch_size) * self._stream
        for k in range(len(self)):
            starts = streams + k * self.length
            if self.shuffle:
                starts = torch.randint(len(self.tokens) - self.length, (self.batch_size,), generator=generator)
            index = starts[:, None] + torch.arange(self.length + 1)
            yield self.tokens[index[:, :-1]], self.tokens[index[:, 1:]]
