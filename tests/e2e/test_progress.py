"""Protects what a terminal shows while a fit runs: a live table with epochs, scores and counts, and no trace of it when
the work has ended.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

TINY = [
    "--set",
    "train.epochs=2",
    "--set",
    "train.eval_every=1",
    "--set",
    "model.width=16",
    "--set",
    "model.feedforward=32",
]
PATIENCE_S = 400


def on_a_terminal(arguments):
    """What a command writes to a terminal on its stderr, control sequences included, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = subprocess.Popen(
        [sys.executable, "-m", "vlbench", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
    )
    os.close(theirs)
    seen, end = b"", time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            seen += part
        return command.wait(timeout=30), seen.decode()
    finally:
        if command.poll() is None:
            command.kill()
            command.wait()
        os.close(ours)


def test_a_terminal_shows_a_live_table(workspace):
    status, seen = on_a_terminal(["train", "videolights_quick", *TINY])
    assert status == 0, seen
    assert "\x1b[" in seen, "a table that is drawn over"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "0 of 1 done, 1 waiting" in text and "0 of 1 done, 1 running" in text
    assert re.search(r"baseline  seed \d+ +epoch 2/2 +MR-mAP \d+\.\d\d  HD-mAP \d+\.\d\d \(tune\)", text)
    assert re.search(r"baseline  seed \d+  done  MR-mAP", text)
    assert re.search(r"1 of 1 done  \d", text)
