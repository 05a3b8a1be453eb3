"""How a picture was drawn, written down: results, metadata, and the texts inside PNGs."""
