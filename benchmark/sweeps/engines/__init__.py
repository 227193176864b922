"""Where the runs of a sweep are carried out: in processes of this machine, on a Ray cluster, or by Slurm.

All engines call `worker.carry_out` in another process, which leaves the same record wherever it is called.
"""
