"""Many runs from one command: each job in its own process, none twice, and a table of all at the end.

Hydra's sweepers choose the jobs. Its launchers call `grace_exp.sweeps.sweep_job.run_sweep_job` for each, which starts
`python -m grace_exp <overrides>` as a child. The processes communicate through files in the sweep's folder.
"""
