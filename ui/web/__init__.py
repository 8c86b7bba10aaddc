"""What stands between the network and Gradio: who asks, what is theirs, how much they may ask for.

In: ASGI requests. Out: the same requests, or a refusal in one sentence; files by signed links; the page of a vote.
`guard.Guard` is the door; `visitors`, `uploads`, `pages`, `turns`, `limits`, `media` and `ballot` are what it asks.
"""
