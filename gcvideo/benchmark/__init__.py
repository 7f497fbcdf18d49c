"""``gcvideo benchmark NAME ...``: one module for each benchmark, imported only when it is run."""

# Name -> module as `gcvideo.cli` describes it, and a line of help.
SUBCOMMANDS = {
    "compare": ("gcvideo.benchmark.compare", "networks in one table: size, time, memory, accuracy, scaling of blocks"),
    "complexity": ("gcvideo.benchmark.complexity", "parameters and multiply-adds of configs, without running them"),
    "blocks": ("gcvideo.benchmark.blocks", "blocks against memory bandwidth, the original code and each other"),
    "infer": ("gcvideo.benchmark.infer", "time to test a video, decoding included, beside pytorchvideo's network"),
    "loader": ("gcvideo.benchmark.loader", "time to read a training clip and a test video, beside other toolkits"),
    "train": ("gcvideo.benchmark.train", "time of a training step, beside pytorchvideo's, and with context blocks"),
}
