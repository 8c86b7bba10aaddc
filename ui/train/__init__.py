"""The Train tab: which methods learn, for how long, and how far they are.

In: dials, checked in `dials`. Out: a training in the line, a lane per method with its curve.
`layout` is what stands on the page, `events` what its buttons do.
"""
