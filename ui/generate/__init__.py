"""The Generate tab: a style or one's own words become pictures by every method, with the same seeds.

In: what a browser sent, checked in `values`. Out: a drawing in the line, and the pictures side by side.
`layout` is what stands on the page, `events` what its buttons do, `finish` and `imports` are sections of it.
"""
