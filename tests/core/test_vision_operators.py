"""torchvision can be imported whatever builds of it and of torch lie side by side."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("times", [1, 2])
def test_after_the_declaration_torchvision_can_be_imported_in_a_fresh_process(times):
    code = ("from modules.core.vision_operators import declare\n" + "declare()\n" * times
            + "import torch, torchvision, torchvision.transforms.functional as f; print(f.hflip(torch.arange(4).reshape(1, 2, 2)).tolist())")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stdout.strip() == "[[[1, 0], [3, 2]]]", done.stderr
