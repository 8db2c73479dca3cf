"""An independent engine: transformers in eager attention, float32, one request, a cache pruned by plain code.

Nothing of kvserve is imported. Scores are plain code over what transformers itself returns, in float64 where the
policy's own precision would hide mistakes.
"""

from tests.engine.reference.baselines import keydiff, knorm, snapkv, streaming, tova
from tests.engine.reference.engine import Keep, Merge, Round, Trace, load, recorded_queries, run, traced
from tests.engine.reference.evidence import expected_attention, h2o, rkv
from tests.engine.reference.fixed import elastic, prefixkv
from tests.engine.reference.newer import chunkkv, criticalkv, kvzip, lagkv, repetition
from tests.engine.reference.trigonometry import query_statistics, triattention
from tests.engine.reference.votes import cold_compress, official, scissorhands

__all__ = [
    "Keep",
    "Merge",
    "Round",
    "Trace",
    "chunkkv",
    "cold_compress",
    "criticalkv",
    "elastic",
    "expected_attention",
    "h2o",
    "keydiff",
    "knorm",
    "kvzip",
    "lagkv",
    "load",
    "official",
    "prefixkv",
    "query_statistics",
    "recorded_queries",
    "repetition",
    "rkv",
    "run",
    "scissorhands",
    "snapkv",
    "streaming",
    "tova",
    "traced",
    "triattention",
]
