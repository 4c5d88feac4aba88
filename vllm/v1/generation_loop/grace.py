# SPDX-License-Identifier: Apache-2.0
"""Ends the requests of an engine that is shutting down before its time is over.

Upstream's engine core goes on with its requests after SIGTERM, for ``--shutdown-timeout`` seconds, and is
then killed: clients of what still runs wait for a process that is gone.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

logger = init_logger(__name__)

DEFAULT_SECONDS = 20
"""Seconds for running requests where ``--shutdown-timeout`` is not set: less than orchestrators wait before
they kill (Kubernetes: 30)."""

_SHARE = 0.7
"""Of the time, before requests are ended; the rest is for their answers and the release of the device."""


_BEGUN = "shutdown_begun"
"""The attribute of a core that says when its shutdown began."""


def end_in_time(core_process: Any, now: float | None = None) -> None:
    """Aborts what still runs, once most of the time for a shutdown is over. Called with every step.

    Args:
        core_process: The engine core; one in the caller's own process has no shutdown.
        now: The time, in seconds of a steady clock.
    """
    state = getattr(core_process, "shutdown_state", None)
    if state is None or state.name != "SHUTTING_DOWN":
        return
    now = time.monotonic() if now is None else now
    begun = vars(core_process).setdefault(_BEGUN, now)
    if now - begun < _SHARE * core_process.vllm_config.shutdown_timeout:
        return
    ended = core_process.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    if ended:
        logger.info("[shutdown] EngineCore: time is over; aborting in-flight requests count=%d", len(ended))
        core_process._send_abort_outputs(ended)
