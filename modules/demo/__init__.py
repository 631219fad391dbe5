"""The model that comes with Easel, so that the first picture needs no download.

Until it is trained a stand-in with random weights goes the whole road.
"""
