"""The Score tab: who looks like the person.

`score` shows what recognisers say, `vote` what friends say, `look` judges any picture, `verify` reads the marks of a
picture that an AI drew. Each is a section with its own `build` and `wire`.

In: scores in the run's folder. Out: tables, strips, links.
"""
