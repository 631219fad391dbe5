"""Pixels without models. The law of this room: a PIL picture or its bytes go in, a new one comes out, and no argument is changed.

What comes from outside is judged by its header before a pixel is decoded; what we made is never lost for the sake of its text.
"""
