"""``gcvideo benchmark NAME ...``: one module for each benchmark, imported only when it is run."""
