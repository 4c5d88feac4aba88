"""Builds the fork: pinned upstream + patch series + overlay + kernels -> one wheel.

Only the standard library is used, so every module also runs outside a build environment
(``python -m build_support.fetch``, ``tools/patches.py``). ``docs/building.md`` maps the modules.
"""
