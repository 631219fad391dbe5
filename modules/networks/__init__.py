"""The law of this room: nn.Modules, tensors in and out; attribute names are the published checkpoints' own keys.

A network is made from one frozen config of sizes (read from tensor shapes in families/shapes.py), knows no file, no setting and no device,
and draws no random number. Made under `torch.device("meta")` it holds nothing until weights are assigned to it.
"""
