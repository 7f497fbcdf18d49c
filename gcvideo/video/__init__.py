"""Videos: exact frames by index with ``open_video``, or the reason why not; and streams, frame after frame."""

from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.video.reader import VideoReader, open_video, why_missing
from gcvideo.video.stream import FrameStream, StreamFrame

__all__ = ["DamagedVideoError", "FrameStream", "StreamFrame", "VideoError", "VideoReader", "open_video", "why_missing"]
