"""The small values in which policies, scheduler and workers talk about a request and its server."""

from typing import Literal, NamedTuple

from torch import Tensor


class Summaries(NamedTuple):
    """What the served model was taught about summary tokens; see kvserve.summary.file."""

    chunk: int  # text tokens that one summary stands for
    window: int  # chunks that stay as text, as trained
    layers: tuple[Literal["summary", "full"], ...]  # "full" ones keep all text


class OtherGroup(NamedTuple):
    """Layers that are not compressed but take blocks of the same pool: those with a window, or a recurrent state."""

    kind: str  # vLLM's name: sliding_window, chunked_local_attention, mamba, ...
    block_size: int  # tokens
    most_blocks: int  # that one request holds at once, however long; of n tokens at most ceil(n / block_size) + 1


class Facts(NamedTuple):
    """What this server is: what `Policy.check` may refuse a request for. See kvserve.startup.facts."""

    num_layers: int  # compressible ones
    groups: int  # of compressible layers, with block tables of their own
    block_size: int
    pool_tokens: int  # tokens that an otherwise empty pool can hold for one request
    max_model_len: int
    chunk: int  # largest prefill chunk, tokens
    tensor_parallel: int = 1  # workers among which the KV heads of a layer are split
    calibrated: tuple[str, ...] = ()  # statistics in the server's calibration file; see kvserve.evidence.calibration
    rope_problem: str | None = None  # why what positions do to queries and keys cannot be undone; None: it can
    output_problem: str | None = None  # why the output projections of layers cannot be read; None: they can
    unrotated: int = 0  # of the compressible layers, those without RoPE
    mrope: bool = False  # tokens of pictures have several positions (M-RoPE), those of text one
    picture_spans: bool = False  # tokens of a picture attend to each other, also to later ones
    summaries: Summaries | None = None  # None: the model has no summary parameters
    pool_blocks: int = 0  # that requests can hold, of all groups together
    block_sizes: tuple[int, ...] = ()  # tokens, of each group of compressible layers
    other_groups: tuple[OtherGroup, ...] = ()
    side_pass_problem: str | None = None  # why prompts cannot be repeated by a side pass; None: they can
    share_problem: str | None = None  # why compressed prefixes cannot be shared; None: they can
    drafts: int = 0  # tokens that speculative decoding may try in a step, of each request
    pipeline_parallel: int = 1  # stages among which the layers of the model are split
    bundling: str = ""  # why there are as many groups as there are, for people


class Moment(NamedTuple):
    """Where a request stands, in tokens, when the scheduler asks whether a compaction is due."""

    logical: int  # tokens seen
    physical: int  # tokens kept
    stage: Literal["prefill", "prefilled", "decode"]  # between chunks, prompt just done, generating
    prompt: int = 0  # tokens of the prompt


class Merged(NamedTuple):
    """Slots that stay with contents that took in those of others; what a merging policy selects."""

    slots: Tensor  # (H, keep) int64, ascending: whose positions and state the entries have
    keys: Tensor | None  # (H, keep, D) float32; None = as they are
    values: Tensor | None
    merged: int  # tokens per layer that went into others
    first: int | None = None  # keys and values are those of entries `first`, `first` + 1, ...; others stay as they are
