"""Physical lengths of the requests in a step: what the attention kernels see instead of the logical ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class GroupLengths:
    """Offsets (logical - physical) of one layer group, in the order of the batch.

    Inactive, it changes nothing and costs one comparison: a step without compacted requests. With `always`, lengths
    are handed out in the same place in every step: a captured CUDA graph reads them where it found them.
    """

    def __init__(self, max_requests: int, device: torch.device, always: bool = False) -> None:
        self._always = always
        self._host = torch.zeros(max_requests, dtype=torch.int32)
        self._offsets = torch.zeros(max_requests, dtype=torch.int32, device=device)
        self._physical = torch.zeros(max_requests, dtype=torch.int32, device=device)
        self.active = False

    def begin_step(self, offsets: Sequence[int]) -> None:
        """Offsets of the requests of the coming step, batch order."""
        if not any(offsets):
            self.end_step()
            return
        self.active = True
        self._host[: len(offsets)] = torch.tensor(offsets, dtype=torch.int32)
        self._host[len(offsets) :] = 0
        self._offsets.copy_(self._host, non_blocking=True)

    def end_step(self) -> None:
        if self.active and self._always:
            self._offsets.zero_()
        self.active = False

    def physical(self, seq_lens: Tensor) -> Tensor | None:
        """(reqs,) logical lengths -> physical ones in a buffer that keeps its address; None if they are equal."""
        if not (self.active or self._always):
            return None
        out = self._physical[: len(seq_lens)]
        # Padding rows have length 0 and offset 0.
        return torch.sub(seq_lens, self._offsets[: len(seq_lens)], out=out)

    def positions(self, positions: Tensor, request_of_token: Tensor) -> Tensor:
        """(tokens,) logical positions -> the slot positions that block tables are indexed with."""
        return positions - self._offsets[request_of_token].to(positions.dtype)


def shift_slots(block_table: Any, lengths: GroupLengths, request_of_token: Callable[[int], Tensor]) -> None:
    """Make one of vLLM's block tables map tokens to slots by physical position."""
    stock = _straight(block_table) if _on_cpu(block_table) else block_table.compute_slot_mapping

    def compute_slot_mapping(num_reqs: int, query_start_loc: Tensor, positions: Tensor) -> None:
        if lengths.active:
            positions = lengths.positions(positions, request_of_token(len(positions)))
        stock(num_reqs, query_start_loc, positions)

    block_table.compute_slot_mapping = compute_slot_mapping


def _on_cpu(block_table: Any) -> bool:
    return getattr(block_table, "device", None) == torch.device("cpu")


def _straight(block_table: Any) -> Callable[[int, Tensor, Tensor], None]:
    """What `compute_slot_mapping` does on CPU, without the way there: vLLM binds a Triton launch that is none."""
    kernel = torch.ops._C.compute_slot_mapping_kernel_impl.default

    def compute_slot_mapping(num_reqs: int, query_start_loc: Tensor, positions: Tensor) -> None:
        table, slots = block_table.block_table.gpu, block_table.slot_mapping.gpu
        kernel(query_start_loc, positions, table, slots, block_table.block_size)

    return compute_slot_mapping
