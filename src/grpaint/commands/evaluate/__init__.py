"""``grpaint evaluate`` of several models: the same prompts and noise, every measure, intervals of the differences.

``candidates`` holds the models and the measures, ``parts`` draws images and scores them in parts that can be resumed,
``result`` turns scores into numbers with intervals and cards; ``report.pages.evaluation`` renders the page.
"""
