"""What is too large for every run."""
import pytest

from tests.benchmarks import full_size_parity


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_at_full_size_our_networks_give_what_diffusers_and_transformers_give(tmp_path):
    assert full_size_parity.run(tmp_path / "sd15.safetensors", seed=0)
