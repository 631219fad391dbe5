"""The law of this room: (request, resources) -> Result; it reads no setting and no file of its own accord."""
