# SPDX-License-Identifier: Apache-2.0
"""Dream: a Qwen2.5 backbone whose attention is bidirectional.

The weights' names and shapes are Qwen2.5's. The ``full_diffusion`` generation loop sees
to the attention and to the logits, of which row i predicts token i + 1.
"""

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM


class DreamModel(CompleteWeights, Qwen2ForCausalLM):
    """``DreamModel`` checkpoints (Dream 7B, DreamCoder, DiffuCoder)."""
