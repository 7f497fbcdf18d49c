"""``gcvideo analyze NAME CHECKPOINT [key=value ...]``: what the blocks of a trained network do with its videos."""
