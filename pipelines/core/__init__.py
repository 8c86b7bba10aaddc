"""What every other room shares: records, their decoder and limits, files, a run's folder, presets, the machine.

In: JSON, paths, a person's words. Out: frozen records, whole files, sentences about what is wrong.
Imports no other room and, at import, nothing heavy.
Try it: `from pipelines.core.run import new_run, forget; print(forget(new_run().folder))`.
"""
