"""Context blocks: layers that see a whole clip at once. The global context family and the non-local family."""

from gcvideo.layers.context import ContextBlock, gc_block, se_block, snl_block
from gcvideo.layers.non_local import NonLocalBlock
from gcvideo.layers.trace import BlockTrace, TracedBlock, record_attention
