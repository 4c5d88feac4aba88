"""Training problems made by processes that run ahead of the GPU.

Batch ``i`` depends on the seed and ``i`` alone, whatever the number of processes.
"""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .bpe import BytePairs
from .reasoning import training
from .tasks import Batch
from .vocab import EOS

AHEAD = 6
"""Batches that each process may be ahead."""
PATIENCE = 120.0
"""Seconds without a batch after which its process is taken for dead."""

Array = npt.NDArray[np.int16]


def pack(
    tokenizer: BytePairs, shares: dict[str, int], seed: int, index: int, length: int
) -> tuple[Array, Array]:
    """Makes batch ``index``.

    Args:
        tokenizer: the model's.
        shares: problems of each task.
        seed: seed of the training.
        index: number of the batch.
        length: columns; what does not fit is drawn again.

    Returns:
        Tokens ``[n, length]`` and, ``[2, n]``, lengths of prompts and of answers without their end.
    """
    rng = Random(f"training {seed} {index}")
    rows = np.full((sum(shares.values()), length), EOS, np.int16)
    lengths = np.zeros((2, len(rows)), np.int16)
    row = 0
    for task, count in shares.items():
        for _ in range(count):
            while True:
                problem = training(task, rng)
                prompt, answer = tokenizer.encode(problem.prompt), tokenizer.encode(problem.answer)
                if len(prompt) + len(answer) < length:
                    break
            rows[row, : len(prompt) + len(answer)] = prompt + answer
            lengths[:, row] = len(prompt), len(answer)
            row += 1
    return rows, lengths


class Feed:
    """Batches of training problems, in order; the processes start with it, before CUDA does."""

    def __init__(
        self, tokenizer: BytePairs, shares: dict[str, int], seed: int, length: int, processes: int
    ) -> None:
        """Starts ``processes``; the arguments are those of ``pack``."""
        context = multiprocessing.get_context("fork")
        self.queues: list[Queue[tuple[Array, Array]]] = [context.Queue(AHEAD) for _ in range(processes)]
        self.processes: list[BaseProcess] = []

        def work(first: int) -> None:
            index = first
            while True:
                self.queues[first].put(pack(tokenizer, shares, seed, index, length))
                index += processes

        for first in range(processes):
            process = context.Process(target=work, args=(first,), daemon=True)
            process.start()
            self.processes.append(process)

    def batches(self, device: torch.device, columns: int) -> Iterator[Batch]:
        """Yields batches for ever, filled with end tokens up to ``columns``."""
        pinned = device.type == "cuda"

        def move(array: Array) -> Tensor:
            tensor = torch.from_numpy(array)
            return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True).long()

        index = 0
        while True:
            rows, lengths = map(move, self.queues[index % len(self.queues)].get(timeout=PATIENCE))
            index += 1
            tokens = torch.nn.functional.pad(rows, (0, columns - rows.shape[1]), value=EOS)
            trainable = torch.ones(len(rows), dtype=torch.bool, device=device)
            yield Batch(tokens, lengths[0], lengths[1], trainable)

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.terminate()
