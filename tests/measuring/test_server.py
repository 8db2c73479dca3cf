"""What is left of a server that died."""

import subprocess
import sys
from pathlib import Path

import pytest

from measuring.server import Server, ServerDied, wait


def _dead(log: Path, text: str) -> Server:
    log.write_text(text)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Server("http://127.0.0.1:9", process, log)  # nobody listens at the discard port


def test_its_errors_are_shown_once_and_before_its_end(tmp_path: Path) -> None:
    noise = "ValueError: the pool is too small\n" + 5000 * "x" + "\nValueError: the pool is too small\nbye\n"
    words = _dead(tmp_path / "log", noise).last_words()
    assert words.startswith("ValueError: the pool is too small\n...\n")
    assert words.endswith("bye\n") and len(words) < 1200


def test_asking_it_names_the_address_and_the_reason(tmp_path: Path) -> None:
    server = _dead(tmp_path / "log", "RuntimeError: out of paper\n")
    with pytest.raises(ServerDied, match=r"127.0.0.1:9/v1/kv/stats: .*\n?.*RuntimeError: out of paper"):
        server.stats()


def test_waiting_gives_up() -> None:
    assert wait(lambda: True, 5) < 1
    assert 0.1 <= wait(lambda: False, 0.1) < 1
