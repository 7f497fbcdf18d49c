"""``gcvideo analyze NAME CHECKPOINT [key=value ...]``: what the blocks of a trained network do with its videos."""

# Name -> module as `gcvideo.cli` describes it, and a line of help.
SUBCOMMANDS = {
    "attention": ("gcvideo.analysis.attention", "does attention depend on the query? distances over positions"),
    "simplify": ("gcvideo.analysis.simplify", "give all queries of a trained non-local network one map"),
}
