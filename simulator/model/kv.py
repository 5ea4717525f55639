"""KV cache of one sequence: what grows with context, what does not, and what a transfer moves. [B]"""

from __future__ import annotations

from simulator.model.architecture import AttentionSpec, ModelSpec

PAGE_TOKENS = 256  # of one page of window KV (SGLang and vLLM, DeepSeek V4)


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


def window_bytes(attention: AttentionSpec) -> float:
    """Sliding-window KV of one sequence in one layer, the window full. [B]"""
    return (attention.window or 0) * attention.window_entry_bytes


def state_bytes(attention: AttentionSpec, drafts: bool = False) -> float:
    """Compressor rows or recurrent state of one sequence in one layer. [B]

    drafts: rings hold more rows so that rejected drafts can be rolled back.
    """
    compressor = attention.compressor
    if compressor is None:
        return attention.state_bytes
    return (compressor.draft_ring_rows if drafts else compressor.ring_rows) * compressor.row_bytes


def transfer_bytes(model: ModelSpec, context: int) -> float:
    """Bytes that a prefill instance sends a decode instance for one request of `context` tokens. [B]

    Entries and index keys; whole pages of window KV; of each compressor the rows that no entry has closed
    yet (and the overlap), as the full ring where it is handed over as one page; recurrent state whole.
    """
    total = kv_bytes(model, context)
    for attention, count in model.attentions:
        if attention.window and attention.window_entry_bytes:
            held = min(context, attention.window)
            total += count * -(-held // PAGE_TOKENS) * PAGE_TOKENS * attention.window_entry_bytes
        compressor = attention.compressor
        if compressor is None:
            total += count * attention.state_bytes
            continue
        rows = compressor.overlap_rows + context % attention.ratio
        if not compressor.sent_whole:
            total += count * rows * compressor.row_bytes
        elif rows:
            total += count * state_bytes(attention)
    return total
