"""KV cache of one sequence: what grows with context, what does not, and what a transfer moves. [B]"""

from __future__ import annotations

from simulator.model.architecture import AttentionSpec, ModelSpec


def kv_bytes(model: ModelSpec, context: int) -> float:
    """Entries and index keys of one sequence of `context` tokens, window and state left out. [B]

    A layer of ratio r holds floor(context / r) of them.
    """
    return sum(
        count * (context // attention.ratio) * attention.stored_entry_bytes
        for attention, count in model.attentions
        if attention.ratio
    )


def kv_bytes_per_token(model: ModelSpec) -> float:
    """Mean growth of `kv_bytes` with context. [B/token]"""
    attentions = (layer.attention for layer in model.layers)
    return sum(attention.stored_entry_bytes / attention.ratio for attention in attentions if attention.ratio)


def window_bytes(model: ModelSpec, drafts: bool = False) -> float:
    """Sliding-window KV of one sequence, full windows. [B]"""
    total = sum((attention.window or 0) * attention.window_entry_bytes * count for attention, count in model.attentions)
    if drafts and model.draft:
        total += sum((layer.attention.window or 0) * layer.attention.window_entry_bytes for layer in model.draft.layers)
    return total


def state_bytes(model: ModelSpec, drafts: bool = False, online: bool = False) -> float:
    """Compressor rows and recurrent state of one sequence. [B]

    drafts: rings hold more rows so that rejected drafts can be rolled back.
    online: compressors that have a running form keep it in place of their ring.
    """

    def one(attention: AttentionSpec) -> float:
        compressor = attention.compressor
        if compressor is None:
            return attention.state_bytes
        ring_rows = compressor.draft_ring_rows if drafts else compressor.ring_rows
        if online and compressor.online_bytes < attention.state_bytes:
            return compressor.online_bytes
        return ring_rows * compressor.row_bytes

    return sum(one(attention) * count for attention, count in model.attentions)


def fixed_bytes(model: ModelSpec, drafts: bool = False, online: bool = False) -> float:
    """What one sequence holds whatever its length: windows and state. [B]"""
    return window_bytes(model, drafts) + state_bytes(model, drafts, online)


def transfer_bytes(model: ModelSpec, context: int, page_tokens: int = 256, online: bool = False) -> float:
    """Bytes that a prefill instance sends a decode instance for one request of `context` tokens. [B]

    Entries and index keys; whole pages of window KV; of each compressor the rows that no entry has closed
    yet (and the overlap), as the full ring where it is handed over as one page; recurrent state whole.
    page_tokens: tokens of a KV page (256 in SGLang and vLLM for DeepSeek V4).
    """
    total = kv_bytes(model, context)
    for attention, count in model.attentions:
        if attention.window and attention.window_entry_bytes:
            held = min(context, attention.window)
            total += count * -(-held // page_tokens) * page_tokens * attention.window_entry_bytes
        compressor = attention.compressor
        if compressor is None:
            total += count * attention.state_bytes
            continue
        rows = compressor.overlap_rows + context % attention.ratio
        if not compressor.sent_whole:
            total += count * rows * compressor.row_bytes
        elif rows:
            total += count * (compressor.online_bytes if online else compressor.ring_rows * compressor.row_bytes)
    return total
