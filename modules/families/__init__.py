"""The law of this room: one `Family` value a file: `recognises(header)`, `build(weights, hints) -> Model`.

Facts are data; nobody asks for a family's name.
"""
