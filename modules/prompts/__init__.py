"""The law of this room: text in, values out, in time that grows no faster than the text.

    grammar, timeline, tags, styles    pure functions of text; hand-written scanners without recursion; no torch
    wildcards                          one text of many, chosen by a seed; also reads the files it chooses from
    learned                            what a textual inversion is to a prompt: a Protocol, filled from above
    tokens                             text -> chunks of 75 tokens with a weight each
    encode                             chunks -> Conditioning, one text at a time, never looking at its neighbours

A prompt that is no grammar at all is still a prompt: brackets that do not close and numbers that are none stay text.
Only what no model could read is refused, by `grammar.check` with a PromptError: too long, a lone surrogate, a NUL.
"""
