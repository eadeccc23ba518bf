"""A fold that is killed, or whose terminal is closed, leaves no half-written file behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_fold(number: int, tmp_path: Path) -> None:
    layers = range(40)
    save_file({f"l{i}.weight": torch.randn(1024, 1024) for i in layers}, tmp_path / "base")
    factors = {f"l{i}.lora_up.weight": torch.randn(1024, 512) for i in layers}
    save_file(factors | {f"l{i}.lora_down.weight": torch.randn(512, 1024) for i in layers}, tmp_path / "adapter")
    command = [sys.executable, "-m", "lyc_fx", "fold", "base", "adapter", "-o", "out.safetensors"]
    heed = partial(
        signal.signal, number, signal.SIG_DFL
    )  # under `nohup` the child would inherit that SIGHUP is ignored
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while process.poll() is None and not list(tmp_path.glob("*.part")):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.communicate()[1].endswith("error: interrupted\n")
    assert process.returncode == 1
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]
