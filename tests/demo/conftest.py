import random

import pytest

from modules.demo.scenes import draw_layout


@pytest.fixture(scope="session")
def layouts():
    """256 layouts as they come."""
    rng = random.Random(2024)
    return [draw_layout(rng) for _ in range(256)]
