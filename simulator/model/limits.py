"""What an engine bounds a step by where nothing else is said: one name and one value for each limit."""

# Prompt tokens that one attention rank computes in a step, and so the prefill chunk size. [tokens] vLLM's
# max_num_batched_tokens for serving on H100 and newer and SGLang's chunked_prefill_size on them (both 8192, 2026-11).
TOKENS_PER_STEP = 8192
# Sequences that one attention rank works on at once. Assumed: engines bound it by 256 to 1024 (vLLM max_num_seqs) or
# by their KV room alone (SGLang max_running_requests).
SEQUENCES_PER_RANK = 512
