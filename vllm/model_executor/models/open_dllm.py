# SPDX-License-Identifier: Apache-2.0
"""Open-dLLM: a Qwen2.5 backbone whose attention is bidirectional.

Published under Qwen2's own name, with Qwen2's names and shapes; row i of the logits predicts token i + 1.
"""

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM


class OpenDLLMForCausalLM(CompleteWeights, Qwen2ForCausalLM):
    """Open-dLLM and Open-dCoder checkpoints."""
