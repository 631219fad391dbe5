"""Training: the same networks and the same noise in the other direction.

The law of the room: a task (`diffusion.py`, `autoencoder.py`) says what a batch is and what its loss is, and knows no optimiser; `loop.py`
turns losses into steps, and knows no network. What is random in a step is drawn from a generator that stands at (seed, step), so a run that
was stopped and one that was not are the same run. `train.py` is the way in.
"""
