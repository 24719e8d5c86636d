"""The style of digits.v1; proto/inference has the names of the public protocol."""

from __future__ import annotations

import json
import subprocess

from tests.proto.__main__ import BUF, PROTO

# The service's name was released without the suffix "Service".
RULES = {"use": ["STANDARD", "COMMENTS"], "except": ["SERVICE_SUFFIX"]}


def test_digits_follow_the_style_guide_of_buf_and_every_part_has_a_comment() -> None:
    config = json.dumps({"version": "v2", "lint": RULES})
    lint = [BUF, "lint", ".", "--path", "digits", "--config", config]
    done = subprocess.run(lint, cwd=PROTO, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
