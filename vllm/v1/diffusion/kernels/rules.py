# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""The unmasking rules the ``unmask`` kernel knows."""

from enum import IntEnum

MAX_CANVAS = 4096
"""Widest canvas the ``unmask`` kernel takes, in positions."""


class Rule(IntEnum):
    """How a denoising step chooses the masked positions it unmasks.

    The value of ``threshold`` in the per-slot state is named after each rule. ``n`` is the step's
    quota: ``B // T``, one more while ``step < B % T``, and never less than one. Equal confidences
    or entropies go to the lower position; NaN ranks last. Every rule but ``GIVEN`` unmasks at
    least one position. Mirrors ``UnmaskRule`` in ``csrc/include/unmask.h``.
    """

    GIVEN = 0
    """The rows that ``picked`` marks; may be none. Threshold unused."""

    STATIC = 1
    """The ``n`` most confident (SDAR ``low_confidence_static``, LLaDA). Threshold unused."""

    DYNAMIC = 2
    """All with confidence > threshold if they are at least ``n``, else the ``n`` most confident
    (SDAR ``low_confidence_dynamic``)."""

    SEQUENTIAL = 3
    """The leftmost ``n`` (SDAR ``sequential``). Threshold unused."""

    ENTROPY_BOUNDED = 4
    """Entropies ascending: those whose running sum is still below the threshold, at least one
    (SDAR ``entropy_bounded``)."""

    THRESHOLD = 5
    """All with confidence >= threshold, and always the most confident (Fast-dLLM)."""

    FACTOR = 6
    """Confidences descending: rank r (from 1) passes while it is >= ``1 - f / (r + 1)``, f being the
    threshold; at least one. When the last rank alone fails, it is finished too: so does the
    published loop (Fast-dLLM ``get_transfer_index_dynamic``), and its golden ids need it."""
