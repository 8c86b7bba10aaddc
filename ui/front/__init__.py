"""What stands above the tabs: the first screen, the finished example, and a portrait with one button.

In: a view of the run. Out: a run that holds the example, or a job that makes portraits; how far it is, and its best.
`layout` is what stands on the page, `events` what its buttons do, `chain` how far the portraits are, `example` the
finished run, `html` the words and pictures.
"""
