"""From file to memory. The law of this room:

- A file is judged before anything else changes: header, keys, shapes, finite values. What fails is a CheckpointError that names
  the file and the cause, and the model that was loaded before is loaded still.
- Reading runs nothing: a pickle is read by an interpreter of ours that knows tensors and dictionaries and refuses the rest.
- Weights in memory are private copies. Whatever happens to the file afterwards (truncated, replaced, unlinked), they stay.
- Nothing here writes, renames or deletes a user's file.

    layout.py      where each tensor's bytes lie in a file
    read.py        any model file -> header, metadata, weights
    pickles.py     the one reader of pickles
    shelf.py       the files under models/: titles, names, aliases
    load.py        file -> Model
    residency.py   `with borrow(name) as model`: at most one model in memory
"""
