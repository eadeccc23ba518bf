"""The machinery of the checkpoint road: what lies where in files, the jobs that merge it, and where they write."""
