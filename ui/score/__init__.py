"""The Score tab: who looks like the person, by recognisers (`score`), by friends (`vote`), for any picture (`look`), and
the marks of a picture that an AI drew (`verify`). Each is a section with its own `build` and `wire`.

In: scores in the run's folder. Out: tables, strips, links.
"""
