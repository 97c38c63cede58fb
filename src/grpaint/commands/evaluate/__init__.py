"""``grpaint evaluate`` of several models: the same prompts and noise, every measure, intervals of the differences.

``sources`` says who is judged and by what, ``parts`` makes images and scores them in parts that can be resumed,
``result`` turns scores into numbers with intervals and cards, ``page`` shows them.
"""
