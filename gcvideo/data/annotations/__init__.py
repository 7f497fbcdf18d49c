"""Annotations of every format in use, read as one table of records."""

from gcvideo.data.annotations.kinetics import clip_name
from gcvideo.data.annotations.lists import load_classes, load_records
from gcvideo.data.annotations.video_files import VIDEO_SUFFIXES, videos_under

__all__ = ["VIDEO_SUFFIXES", "clip_name", "load_classes", "load_records", "videos_under"]
