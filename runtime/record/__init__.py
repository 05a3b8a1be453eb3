"""Records of how a picture was drawn: results, metadata, and the texts inside PNGs."""
