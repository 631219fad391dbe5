"""Texts that look like prompts: every mark of the grammar, broken in every way, and words of many scripts."""
from hypothesis import strategies as st

MARKS = (
    "(", ")", "[", "]", ":", "|", "\\", ":1.2)", ": -.5 )",
    " BREAK ", " AND ", "#", "1.2.3", "<lora:x:1>", "<", ">", "_", "1e999", "9" * 400, "٣", "[a:b:3]", "[x|y]", "[:c:.5]",
    "::", "cat", " ", "\n", "\t", "👩‍👩‍👧", "שלום", "é", "日本", "it's", ", ", "<|endoftext|>")
SYNTAX = st.lists(
    st.one_of(st.sampled_from(MARKS), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), max_size=60).map("".join)
