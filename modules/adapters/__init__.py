"""The law of this room: what is put on a model, or read beside it, and leaves it as it was, bit for bit.

    embedding, embedding_pictures    textual inversions: words of a prompt that are vectors
"""
