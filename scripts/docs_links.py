"""A hook of mkdocs that replaces links from docs/ to other files of the repository on the site.

In the repository such a link is relative (`[the studies](../experiments/README.md)`). The site holds only docs/, so
the hook shows the link's text and the file's path there. A missing file gives a warning, which fails in strict mode.
"""

import logging
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)\s#]+)(?:#[^)]*)?\)")

log = logging.getLogger("mkdocs.hooks.docs_links")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Return the page's text, with links that leave docs/ replaced by their text and the file's path."""

    def shown(link: re.Match) -> str:
        text, path = link.groups()
        if not (ROOT / path).exists():
            log.warning("%s: ../%s does not exist", page.file.src_uri, path)
        return f"`{path}`" if text.strip("`/") == path.strip("/") else f"{text} (`{path}`)"

    return OUTSIDE.sub(shown, markdown)
