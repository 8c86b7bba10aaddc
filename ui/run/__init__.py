"""A visitor's run: what it is and what can be done with it. No HTML.

In: the key that a browser or a program holds. Out: `services.Services` finds the run, `view.View` is one look at it,
`start` puts work in the line, `package` makes the download.
"""
