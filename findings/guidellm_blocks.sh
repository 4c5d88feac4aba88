#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# guidellm 0.8.1: where a chunk of a stream brings a block of tokens, the time between tokens comes out too short, for an
# answer of two blocks by half.
#
# It divides the time behind the first chunk by all tokens but one, and knows how many chunks there were and how many
# tokens. Two blocks of 32 tokens, a second apart: the 32 tokens behind the first took 31.25 ms each; it says 15.87.
# Throughput (tokens by `usage`, divided by the whole time) is right.
#
# Exits with 0 while this is so, with 1 once the first block's tokens are left out.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 2>/dev/null
"$work/venv/bin/pip" install --quiet guidellm==0.8.1 torch==2.13.0 2>/dev/null

cat > "$work/stats.py" <<'PYTHON'
import sys
from importlib.metadata import version

from guidellm.schemas import GenerativeRequestStats, RequestInfo, RequestTimings, UsageMetrics

BLOCKS, TOKENS, SECONDS = 2, 32, 1.0
begin, first = 100.0, 100.5
last = first + (BLOCKS - 1) * SECONDS
timings = RequestTimings(
    request_start=begin,
    first_token_iteration=first,
    last_token_iteration=last,
    token_iterations=BLOCKS,
    request_end=last,
)
stats = GenerativeRequestStats(
    request_id="1",
    info=RequestInfo(request_id="1", status="completed", timings=timings),
    input_metrics=UsageMetrics(text_tokens=10),
    output_metrics=UsageMetrics(text_tokens=BLOCKS * TOKENS),
)
want = 1000 * SECONDS / TOKENS
print(f"guidellm {version('guidellm')}: {stats.output_tokens} tokens in {BLOCKS} chunks; inter-token latency"
      f" {stats.inter_token_latency_ms:.2f} ms, the tokens behind the first block took {want:.2f} ms each")
sys.exit(0 if stats.inter_token_latency_ms < 0.6 * want else 1)
PYTHON

"$work/venv/bin/python" "$work/stats.py"
