"""Who owns which KV block and which state slot.

Blocks are reference counted. A full block is known by the hash of its tokens and of all tokens before it, and
can be shared by sequences with the same prefix; when nobody uses it, it waits in LRU order to be reused or
overwritten.

Models with state (a window of recent keys, compressor accumulators) keep it in a slot per sequence, not in
blocks. For them a prefix can be resumed only at a block boundary whose slot was copied into a spare slot: a
snapshot. Snapshots are kept by hash in LRU order, yield to running sequences, and go with their block.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from runtime.sequence import Sequence, SettingError


@dataclass(frozen=True)
class SlotReset:
    """Clear a slot for a sequence that starts at its first token."""

    slot: int


@dataclass(frozen=True)
class SlotCopy:
    """Copy a slot: save a snapshot, or resume from one."""

    source: int
    target: int


SlotOp = SlotReset | SlotCopy


@dataclass(frozen=True)
class PrefixMatch:
    """Blocks of a sequence found in the cache.

    usable: leading blocks that can be reused (with state: up to the last boundary that has a snapshot).
    known: leading blocks whose tokens are in the cache.
    """

    usable: int
    known: int


# Share of the blocks that a newcomer leaves free for running sequences to grow into, as in vLLM's block manager.
WATERMARK = 0.01

NO_MATCH = PrefixMatch(usable=0, known=0)  # blocks


class BlockManager:
    """num_slots: 0 for a model that keeps everything in blocks."""

    def __init__(self, num_blocks: int, block_size: int, num_slots: int, prefix_caching: bool = True) -> None:
        if num_blocks < 1:
            raise SettingError(f"num_blocks={num_blocks} leaves no room for any sequence; use 1 or more")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_slots = num_slots
        self.prefix_caching = prefix_caching
        self._reference_count = [0] * num_blocks
        self._hash_of_block: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        self._free_blocks: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._used_slots: set[int] = set()
        self._snapshot_of_hash: OrderedDict[bytes, int] = OrderedDict()

    @property
    def has_state(self) -> bool:
        return self.num_slots > 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses (some of them still hold reusable contents)."""
        return len(self._free_blocks)

    @property
    def num_snapshots(self) -> int:
        return len(self._snapshot_of_hash)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, sequence: Sequence) -> PrefixMatch:
        """Longest prefix in the cache. At least one token is left to compute: its logits are needed."""
        if not self.prefix_caching:
            return NO_MATCH
        usable = known = 0
        for index in range((len(sequence) - 1) // self.block_size):
            digest = sequence.block_hash(index)
            if digest not in self._block_of_hash:
                break
            known = index + 1
            if not self.has_state or digest in self._snapshot_of_hash:
                usable = known
        return PrefixMatch(usable, known)

    def allocate(self, sequence: Sequence, match: PrefixMatch) -> list[SlotOp] | None:
        """Give a sequence blocks for all its tokens and the next one, and a slot; None when there is no room.

        A share of the blocks stays free for the sequences that run to grow into; an empty pool takes any sequence
        that fits at all. Reused blocks count as computed. The returned slot operations must run, in order, before
        the step.
        """
        assert not sequence.block_ids
        assert sequence.slot is None
        hashes = [sequence.block_hash(i) for i in range(match.usable)]
        reused = [self._block_of_hash[digest] for digest in hashes]
        ahead = 0 if sequence.num_imported else 1  # the newest token of an imported sequence is yet to be stored
        missing = min(self.blocks_for(len(sequence) + ahead), self.num_blocks) - len(reused)
        idle_reused = sum(self._reference_count[block] == 0 for block in reused)
        left = len(self._free_blocks) - idle_reused - missing
        is_empty = len(self._free_blocks) == self.num_blocks
        if left < (0 if is_empty else int(WATERMARK * self.num_blocks)):
            return None
        if self.has_state and not self._free_slots and not self._snapshot_of_hash:
            return None
        for block in reused:
            if self._reference_count[block] == 0:
                del self._free_blocks[block]
            self._reference_count[block] += 1
        sequence.block_ids = reused
        sequence.num_computed = match.usable * self.block_size
        sequence.num_published = match.usable
        ops = self._allocate_slot(sequence, hashes[-1] if hashes else None)
        sequence.block_ids.extend(self._take_block() for _ in range(missing))
        return ops

    def _allocate_slot(self, sequence: Sequence, resume_hash: bytes | None) -> list[SlotOp]:
        if not self.has_state:
            return []
        source = None
        if resume_hash is not None:
            self._snapshot_of_hash.move_to_end(resume_hash)
            source = self._snapshot_of_hash[resume_hash]
        slot = self._take_slot()
        assert slot is not None
        self._used_slots.add(slot)
        sequence.slot = slot
        if source is None:
            return [SlotReset(slot)]
        # The snapshot itself may have been the only slot left to take: then its state is already in place.
        return [SlotCopy(source, slot)] if source != slot else []

    def append_block(self, sequence: Sequence, ahead: int = 0) -> bool:
        """Make room for the newest token and `ahead` (0 or 1) more; False when all blocks are in use."""
        if len(sequence) + ahead <= len(sequence.block_ids) * self.block_size:
            return True
        if not self._free_blocks:
            return False
        sequence.block_ids.append(self._take_block())
        return True

    def commit(self, sequence: Sequence, num_computed: int) -> list[SlotOp]:
        """Tokens up to `num_computed` have cache entries: publish full blocks, save a snapshot at a boundary.

        The returned slot operations must run before the sequence's next step.
        """
        sequence.num_computed = num_computed
        full = num_computed // self.block_size
        if not self.prefix_caching or full == 0:
            return []
        for index in range(sequence.num_published, full):
            digest, block = sequence.block_hash(index), sequence.block_ids[index]
            if digest not in self._block_of_hash:
                self._block_of_hash[digest] = block
                self._hash_of_block[block] = digest
        sequence.num_published = full
        if not self.has_state or num_computed % self.block_size:
            return []
        digest = sequence.block_hash(full - 1)
        if digest in self._snapshot_of_hash:
            self._snapshot_of_hash.move_to_end(digest)
            return []
        slot = self._take_slot()
        if slot is None:
            return []
        self._snapshot_of_hash[digest] = slot
        assert sequence.slot is not None
        return [SlotCopy(sequence.slot, slot)]

    def free(self, sequence: Sequence) -> None:
        """Take back everything a sequence holds. Contents with a hash stay reusable until overwritten."""
        # Tail first: a prefix is worth more than what follows it, so it is overwritten later.
        for block in reversed(sequence.block_ids):
            self._reference_count[block] -= 1
            assert self._reference_count[block] >= 0
            if self._reference_count[block] == 0:
                self._free_blocks[block] = None
                if self._hash_of_block[block] is None:
                    self._free_blocks.move_to_end(block, last=False)
        sequence.block_ids = []
        sequence.num_computed = sequence.num_published = 0
        if sequence.slot is not None:
            self._used_slots.remove(sequence.slot)
            self._free_slots.append(sequence.slot)
            sequence.slot = None

    def _take_block(self) -> int:
        block, _ = self._free_blocks.popitem(last=False)
        digest = self._hash_of_block[block]
        if digest is not None:
            del self._block_of_hash[digest]
            self._hash_of_block[block] = None
            snapshot = self._snapshot_of_hash.pop(digest, None)
            if snapshot is not None:
                self._free_slots.append(snapshot)
        self._reference_count[block] = 1
        return block

    def _take_slot(self) -> int | None:
        if self._free_slots:
            return self._free_slots.pop()
        if self._snapshot_of_hash:
            return self._snapshot_of_hash.popitem(last=False)[1]
        return None

    def check_consistency(self) -> None:
        """Every block and slot is in exactly one place."""
        in_use = sum(count > 0 for count in self._reference_count)
        assert in_use + len(self._free_blocks) == self.num_blocks, "a block is lost or doubly owned"
        assert all(self._reference_count[block] == 0 for block in self._free_blocks), "a used block is free"
        slots = [*self._free_slots, *self._used_slots, *self._snapshot_of_hash.values()]
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost or doubly owned"
        for digest, block in self._block_of_hash.items():
            assert self._hash_of_block[block] == digest, "hash tables disagree"
        assert self._snapshot_of_hash.keys() <= self._block_of_hash.keys(), "a snapshot outlived its block"

    def check_idle(self) -> None:
        """No sequence holds anything."""
        self.check_consistency()
        assert self.num_free_blocks == self.num_blocks, f"{self.num_blocks - self.num_free_blocks} blocks leaked"
        assert not self._used_slots, f"slots {sorted(self._used_slots)} leaked"
