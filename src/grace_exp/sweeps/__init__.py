"""Many runs from one command: each in a process of its own, none twice, and a table of all at the end.

Hydra's sweepers choose the jobs and its launchers call `grace_exp.sweeps.sweep_job.run_sweep_job` for each; that starts
`python -m grace_exp <overrides>` as a child. What passes between the processes lies in the sweep's folder.
"""
