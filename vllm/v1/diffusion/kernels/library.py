# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Loads the compiled operators, ``torch.ops.vllm_diffusion``.

Importing this module loads ``vllm/_diffusion_C.abi3.so``. The sources are under ``csrc/``. The modules
beside this one give each operator types and documentation. The same operators in plain PyTorch are in
``reference.py``, and ``tolerances.py`` says how far the two may differ.
"""

import importlib.util

import torch


def _load_library() -> None:
    """Loads the compiled operators; raises ImportError with a plain sentence if that fails."""
    spec = importlib.util.find_spec("vllm._diffusion_C")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The diffusion kernels (vllm/_diffusion_C.abi3.so) are not installed. They are built by "
            "`pip install .` or `pip install -e .` in the vLLM-Diffusion source folder."
        )
    try:
        torch.ops.load_library(spec.origin)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"The diffusion kernels ({spec.origin}) were built for another torch or another "
            f"platform and cannot be loaded with torch {torch.__version__}: {error.__cause__ or error}"
        ) from error


_load_library()
