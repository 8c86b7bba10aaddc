"""The Upload tab: photos, who they show, on which base, with whose consent.

In: files of a browser; only `pipelines.photos` opens them. Out: a run with its photos, a verdict for each.
`layout` is what stands on the page, `events` what its buttons do.
"""
