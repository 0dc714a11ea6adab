"""Measure adapterkit against PEFT: the same work, interleaved in one process, outputs compared first.

Every contender loads the same adapter file, written here in PEFT's format by neither library. In every round each
contender runs once, in random order; a ratio is the median of the rounds' ratios, so that drift and other load cancel.
On the CPU the clock is the process's CPU time on one thread; on a GPU it is the wall clock after synchronising.
"""
