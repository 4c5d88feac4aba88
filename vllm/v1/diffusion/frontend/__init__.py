# SPDX-License-Identifier: Apache-2.0
"""What runs in the front end: admission, HTTP fields, reports and metrics."""
