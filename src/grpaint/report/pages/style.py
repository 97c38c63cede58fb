"""The style sheet that all pages share."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } figcaption, .note { color: var(--soft); font-size: .9rem; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
svg .axis { stroke: currentColor; stroke-opacity: .35; fill: none; }
img { max-width: 100%; image-rendering: pixelated; }
.key span { display: inline-block; margin-right: 1.1rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.1rem; height: .25rem; margin-right: .35rem; vertical-align: middle; }
"""
