"""``trim``: the network cut at its tunnel, chosen on validation images, certified on test images, and written."""
