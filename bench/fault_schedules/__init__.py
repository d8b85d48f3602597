"""Random schedules of faults that overlap, on the running system: what no row of the crash matrix thought of.

`schedule` draws, writes, reads and shrinks schedules and runs nothing; `kinds` has the faults, `stack` the system with
its `servers`, `network` and `sinks`; `play` lets a schedule happen and judges it by the law of the crash matrix.
"""
