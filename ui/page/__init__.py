"""How the tabs meet: one look at the run goes in, updates for every tab come out.

`refresh` shows the run on the open tab, `page` is Gradio's page without what costs and leaks, `theme` and `style.css`
are the look, `errors` makes every error one sentence, `fields` take files and open none, `startup` runs before Gradio
is imported, `gpu` asks ZeroGPU for slices.
"""
