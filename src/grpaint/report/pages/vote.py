"""The page on which a voter ranks the images of a group."""

from grpaint.report.pages.template import render


def vote_page(run: str, voter: str) -> str:
    """Return the page of a voter as HTML; it asks its server for questions, by addresses relative to its own."""
    return render("vote.html", scripts=("live.js", "vote.js"), styles=("vote.css",), live=True, run=run, voter=voter)
