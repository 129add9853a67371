"""A memory allocator setting that makes training on a CPU faster."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Reuse large freed blocks instead of returning them to the kernel.

    Decoding concatenates its key-value cache at each token, and the kernel zeroes every fresh page:
    that took 44 % of a decoding step on two cores, and 4 % with this setting. The process keeps its
    peak memory. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
