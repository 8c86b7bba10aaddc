"""Core: what all other packages use.

In: JSON, paths, prompts. Out: frozen records, files that are never half-written, `UserError`s with a sentence.
`records` has the records, `decode` reads them from JSON and checks their limits, `files` writes, `run` knows the paths
in a run's folder, `presets` reads styles and recipes, `safety` refuses prompts, `device` picks the device, `control`
stops a job. Imports no other package of the project and, at import, nothing heavy.
Try it: `from pipelines.core.run import new_run, forget; print(forget(new_run().folder))`.
"""
