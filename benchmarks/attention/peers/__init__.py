"""Other people's attention kernels for Hopper, compiled from source trees that the user brings.

Nothing of theirs is in this repository. FlashAttention-3's forward is compiled behind a C function
for the head sizes that are measured alone, and SageAttention 2's kernels behind the functions that
its own Python calls. README.md says how.
"""
