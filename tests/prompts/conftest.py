import pytest

from modules.prompts.tokens import Tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer()
