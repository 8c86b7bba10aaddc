"""The texts of the pages in the reader's language: English in the code, others in `<language>.json`.

In: an English text. Out: the text in the language of who asks (`words.say`, `words.tell`); names, amounts and durations
(`phrases`); sentences of the lower rooms (`retold`).
"""
